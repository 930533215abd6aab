"""Thinker: spoken query to reply text, token by token, with the hidden states that the talkers need."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import record_function
from transformers import PreTrainedTokenizerBase

from lightning_modules.dialogue import History
from lightning_modules.errors import UserError
from lightning_modules.talker.losses import positions_of
from lightning_modules.talker.network.transfers import is_within, send_to
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.dialogue.context import ContextWindow
from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from lightning_modules.thinker.dialogue.settings import DialogueSettings
from lightning_modules.thinker.dialogue.spoken_prompts import SpokenTurns, hear, lay_out, read_out
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.outputs import ReplyStates, ThinkerOutput, ThinkerPrompt, ThinkerToken
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.transcription import best_transcripts, transcription_loss
from lightning_modules.thinker.writing.writing import Writing, writing_for


class Thinker(nn.Module):
    """Speech encoder, adaptor and language model in one chat template.

    Args:
        speech_encoder: Maps waveforms to frames.
        adaptor: Maps frames to input embeddings of the language model.
        language_model: Maps embeddings to hidden states and logits.
        tokenizer: The language model's tokenizer: a directory, a published name, or the object.
        audio_token: Special token that marks the place of the audio in the chat template.
        system_prompt: Text of the system's turn; None leaves that turn to the template.
        train_speech_encoder: False freezes the speech encoder (and its dropout).
        dialogue: What tokenizer and chat template leave open; its defaults if None.

    Raises:
        FileNotFoundError: If no tokenizer can be loaded.
        UserError: If the parts do not fit each other.
    """

    def __init__(
        self,
        speech_encoder: SpeechEncoder,
        adaptor: Adaptor,
        language_model: LanguageModel,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        audio_token: str = "<|audio|>",
        system_prompt: str | None = None,
        train_speech_encoder: bool = True,
        dialogue: DialogueSettings | None = None,
    ) -> None:
        super().__init__()
        self.speech_encoder = speech_encoder
        self.adaptor = adaptor
        self.language_model = language_model
        self._dialogue = dialogue or DialogueSettings()
        self._take_prompt(ChatPrompt(tokenizer, audio_token, system_prompt, self._dialogue))
        self.train_speech_encoder = train_speech_encoder
        if not train_speech_encoder:
            speech_encoder.requires_grad_(False).eval()
        _check_fit(speech_encoder, adaptor, language_model)

    def add_words(self, words: Sequence[str]) -> None:
        """Make words tokens, which then have to be learned; see :func:`with_new_words`."""
        self._take_prompt(self.prompt.with_new_words(words))

    def _take_prompt(self, prompt: ChatPrompt) -> None:
        prompt.refuse_small_vocabulary(self.language_model.vocab_size)
        self.prompt = prompt
        self.context = ContextWindow(prompt, self.language_model.max_positions, self._dialogue)

    @property
    def hidden_size(self) -> int:
        """Width of ``hidden`` in the outputs."""
        return self.language_model.hidden_size

    @property
    def embedding_size(self) -> int:
        """Width of ``embedding`` in the outputs."""
        return self.language_model.embedding_size

    def adaptable_parts(self) -> dict[str, nn.Module]:
        """Give the modules that may get LoRA matrices; those of transformers bare, so that it reads what is saved."""
        return {
            "thinker.language_model": self.language_model.causal_lm,
            "thinker.speech_encoder": self.speech_encoder.encoder,
            "thinker.adaptor": self.adaptor,
        }

    def train(self, mode: bool = True) -> "Thinker":
        """Set the training mode, except in a frozen speech encoder."""
        super().train(mode)
        if not self.train_speech_encoder:
            self.speech_encoder.eval()
        return self

    def forward(
        self,
        query: Tensor,
        query_lengths: Tensor,
        reply_texts: Sequence[str],
        transcripts: Sequence[str] | None = None,
        history: History | None = None,
    ) -> ThinkerOutput:
        """Read gold replies to spoken queries.

        Args:
            query: ``(B, S) float``, 16 kHz.
            query_lengths: ``(B,) int64`` samples; on the host, or it waits for them.
            reply_texts: B texts.
            transcripts: B texts of the queries, for ``transcript_loss``.
            history: What was said before the queries; None if every dialogue begins with its query.

        Returns:
            Losses, tokens and hidden states; only the last replies are scored.

        Raises:
            UserError: If a query or a text is empty, or a query or a dialogue is too long.
        """
        audio, audio_lengths = self._embed_audio(query, query_lengths)
        output = self._reply(audio, audio_lengths, reply_texts, hear(history, self._embed_audio))
        if transcripts is None:
            return output
        return replace(output, transcript_loss=self._transcription(audio, audio_lengths, transcripts))

    def states(
        self, query: Tensor, query_lengths: Tensor, reply_texts: Sequence[str], history: History | None = None
    ) -> ReplyStates:
        """Read gold replies without scoring them, as :meth:`forward` reads them: the output head does not run."""
        audio = self._embed_audio(query, query_lengths)
        return self._states(*audio, reply_texts, hear(history, self._embed_audio))[0]

    def read(
        self, transcripts: Sequence[str], reply_texts: Sequence[str], history: History | None = None
    ) -> ThinkerOutput:
        """Read gold replies to written queries, whose text stands in the place of the audio.

        This teaches the language model to answer at a fraction of the cost; :meth:`listen` teaches the audio embeddings
        to equal those of the text.

        Args:
            transcripts: B texts of the queries.
            reply_texts: B texts.
            history: What was said before the queries; the text of a spoken turn stands in the place of its audio, too.

        Returns:
            Loss, tokens and hidden states.

        Raises:
            UserError: If a text is empty, or a spoken turn has none.
        """
        text, text_lengths = self._embed_transcripts(transcripts)
        return self._reply(text, text_lengths, reply_texts, read_out(history, self._embed_transcripts))

    def _embed_transcripts(self, transcripts: Sequence[str]) -> tuple[Tensor, Tensor]:
        token_ids, lengths = pad_rows(self.prompt.encode_transcripts(transcripts))
        return self.language_model.embed(send_to(self.adaptor.up.weight.device, token_ids)), lengths

    def _states(
        self, query: Tensor, query_lengths: Tensor, reply_texts: Sequence[str], earlier: SpokenTurns | None
    ) -> tuple[ReplyStates, Tensor]:
        """Read replies: their states, and those that predict each reply token and what follows, ``(B, N + 1, D)``."""
        device = query.device
        token_ids, lengths = pad_rows(self.prompt.encode_replies(reply_texts))
        token_ids, num_tokens = send_to(device, token_ids), lengths.tolist()
        embedding = self.language_model.embed(token_ids)
        prompts = lay_out(self.context, self.language_model.embed, query, query_lengths, num_tokens, earlier)
        rows = [torch.cat([row, reply[:n]]) for row, reply, n in zip(prompts.rows, embedding, num_tokens, strict=True)]
        hidden = self.language_model(pad_sequence(rows, batch_first=True))
        # Reply position j is predicted one position earlier: y_1 by the last position of the prompt.
        first = torch.tensor([len(row) - 1 for row in prompts.rows])
        position = torch.arange(token_ids.shape[1] + 1)
        place = send_to(device, torch.where(position <= lengths[:, None], first[:, None] + position, 0))
        hidden = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))
        is_reply = is_within(lengths, token_ids.shape[1], device)[..., None]
        states = ReplyStates(
            token_ids=token_ids,
            lengths=lengths,
            hidden=hidden[:, :-1] * is_reply.to(hidden.dtype),
            embedding=embedding * is_reply.to(embedding.dtype),
            num_dropped_turns=prompts.num_dropped_turns,
        )
        return states, hidden

    def _reply(
        self, query: Tensor, query_lengths: Tensor, reply_texts: Sequence[str], earlier: SpokenTurns | None
    ) -> ThinkerOutput:
        states, hidden = self._states(query, query_lengths, reply_texts, earlier)
        num_places, device = hidden.shape[1], hidden.device
        is_target = torch.arange(num_places) <= states.lengths[:, None]  # on the host, which counts them
        places = positions_of(is_target, device)
        targets = nn.functional.pad(states.token_ids, (0, 1))
        targets = targets.scatter(1, send_to(device, states.lengths)[:, None], self.prompt.end_of_turn_id)
        wanted = (one.flatten(0, 1).index_select(0, places) for one in (hidden, targets))
        nll_sum, is_right = self.language_model.score(*wanted)
        is_right_or_none = torch.ones(targets.numel(), dtype=torch.bool, device=device).scatter(0, places, is_right)
        return ThinkerOutput(
            **vars(states),
            loss=nll_sum / len(places),
            num_scored_tokens=is_target.sum(),
            is_exact=is_right_or_none.view(-1, num_places).all(dim=1),
        )

    def listen(self, query: Tensor, query_lengths: Tensor, transcripts: Sequence[str]) -> Tensor:
        """Transcribe queries without a pass of the language model, to teach speech encoder and adaptor first.

        Args:
            query: ``(B, S) float``, 16 kHz.
            query_lengths: ``(B,) int64`` samples.
            transcripts: B texts of the queries.

        Returns:
            Loss, equal to ``transcript_loss`` of :meth:`forward`, a scalar.

        Raises:
            UserError: If a query or a transcript is empty, or a query is too long.
        """
        return self._transcription(*self._embed_audio(query, query_lengths), transcripts)

    @torch.no_grad()
    def transcribe(self, query: Tensor, query_lengths: Tensor) -> list[str]:
        """Write what is heard in queries, without a pass of the language model.

        Args:
            query: ``(B, S) float``, 16 kHz.
            query_lengths: ``(B,) int64`` samples.

        Returns:
            B texts.
        """
        audio, audio_lengths = self._embed_audio(query, query_lengths)
        rows = best_transcripts(self._score_audio(audio), audio_lengths, self.prompt.blank_id)
        return [self.prompt.decode(row).strip() for row in rows]

    @torch.no_grad()
    def encode(self, query: Tensor, history: History | None = None, reply_tokens: int = 0) -> ThinkerPrompt:
        """Run speech encoder and adaptor on one query and what was said before it.

        Args:
            query: ``(S,) float``, 16 kHz.
            history: Earlier turns of this one dialogue; None if it begins with its query.
            reply_tokens: Positions of the context to leave free for the reply.

        Returns:
            What :meth:`stream` reads.

        Raises:
            UserError: If the query is empty, or it or the dialogue is too long.
        """
        lengths = torch.tensor([query.shape[0]])
        audio, audio_lengths = self._embed_audio(query[None], lengths)
        earlier = hear(history, self._embed_audio)
        prompts = lay_out(self.context, self.language_model.embed, audio, audio_lengths, [reply_tokens], earlier)
        return ThinkerPrompt(torch.stack(prompts.rows), prompts.num_dropped_turns)

    def stream(
        self, prompt: ThinkerPrompt, max_new_tokens: int, writing: Writing | None = None
    ) -> Iterator[ThinkerToken]:
        """Write a reply greedily, with a cache of keys and values.

        Args:
            prompt: Result of :meth:`encode`.
            max_new_tokens: Upper limit of tokens.
            writing: How; the one that is the faster on the prompt's device if None.

        Yields:
            Each token as soon as it is known; a token that ends the turn or the text ends the stream, not yielded.
        """
        stop_ids = self.prompt.stop_ids(self.language_model.end_ids)
        writing = writing or writing_for(prompt.embeddings.device)
        return writing.write(self.language_model, prompt.embeddings, max_new_tokens, stop_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn the ids of a streamed reply into text."""
        return self.prompt.decode(token_ids)

    @record_function("step/encoder")
    def _embed_audio(self, query: Tensor, query_lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_speech_encoder):
            frames, frame_lengths = self.speech_encoder(query, query_lengths)
        return self.adaptor(frames, frame_lengths)

    def _score_audio(self, audio: Tensor) -> Tensor:
        normed = nn.functional.rms_norm(audio, (audio.shape[-1],))
        return self.language_model.logits(normed.to(self.language_model.dtype))

    def _transcription(self, audio: Tensor, audio_lengths: Tensor, transcripts: Sequence[str]) -> Tensor:
        token_ids = self.prompt.encode_transcripts(transcripts)
        return transcription_loss(self._score_audio(audio), audio_lengths, token_ids, self.prompt.blank_id)


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids with zeros on the host: ``(B, N) int64``, and their lengths ``(B,) int64``."""
    padded = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in rows], batch_first=True)
    return padded, torch.tensor([len(ids) for ids in rows])


def _check_fit(speech_encoder: SpeechEncoder, adaptor: Adaptor, language_model: LanguageModel) -> None:
    if adaptor.input_size != speech_encoder.output_size:
        raise UserError(
            f"adaptor.input_size is {adaptor.input_size}, the speech encoder gives {speech_encoder.output_size}; "
            "make them equal."
        )
    if adaptor.output_size != language_model.embedding_size:
        raise UserError(
            f"adaptor.output_size is {adaptor.output_size}, the language model takes {language_model.embedding_size}; "
            "make them equal."
        )
