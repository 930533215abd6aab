"""The whole system as one speaks with it: a spoken query in, a spoken reply out."""

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_modules.adapters.adapter_set import AdapterSet
from lightning_modules.dialogue import History
from lightning_modules.errors import UserError
from lightning_modules.inference.batched_replies import speak_batch
from lightning_modules.inference.pipelines import Pipeline, Sequential
from lightning_modules.inference.spoken_reply import SpokenReply, ThinkerText, stream_spoken_reply
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.runners import cpp_compiler, has_compiler
from lightning_modules.talker.network.prepared import prepare_for_decoding
from lightning_modules.thinker.log_mel import SAMPLE_RATE_HZ
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.vocoder.base import Vocoder


class Responder:
    """Answers spoken queries with any of its talkers, under any decoding.

    Args:
        thinker: Writes reply text to a spoken query.
        talkers: Talkers by name.
        vocoder: Turns speech tokens into samples.
        max_text_tokens: Where a reply's text is cut off.
        max_speech_s: Where a reply's speech is cut off.
        adapters: LoRA adapters of thinker and talkers, of which each decoding chooses one; there are none if left out.
        packed_talkers: Pack the linear layers of talkers, in place, for few rows on a CPU: the same speech, faster for
            large talkers, for twice the memory; see :func:`prepare_for_decoding`.
        compiled_talkers: Compile the blocks of talkers when they first speak, on a CPU with a C++ compiler, or capture
            them as graphs, on a GPU: the same speech up to rounding, faster for small talkers and on any GPU. What
            :meth:`speak` says side by side is neither.
        pipeline: Whether thinker, talker and vocoder work one after the other or at the same time when one listens to
            the reply; the former if None.
    """

    def __init__(
        self,
        thinker: Thinker,
        talkers: Mapping[str, Talker],
        vocoder: Vocoder,
        max_text_tokens: int = 64,
        max_speech_s: float = 20.0,
        adapters: AdapterSet | None = None,
        packed_talkers: bool = False,
        compiled_talkers: bool = False,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.thinker, self.talkers, self.vocoder = thinker, dict(talkers), vocoder
        self.max_text_tokens, self.max_speech_s = max_text_tokens, max_speech_s
        self.adapters, self.pipeline = adapters or AdapterSet({}), pipeline or Sequential()
        if packed_talkers:
            for talker in self.talkers.values():
                prepare_for_decoding(talker)
        if compiled_talkers:
            self.compile_talkers()

    def compile_talkers(self) -> None:
        """Let talkers speak with blocks that are compiled on a CPU, and captured as graphs on a GPU, from now on.

        Without a C++ compiler one line says that they are not compiled on a CPU.
        """
        is_on_cpu = any(one.device.type == "cpu" for talker in self.talkers.values() for one in talker.parameters())
        if is_on_cpu and not has_compiler():
            logging.getLogger(__name__).warning("no C++ compiler (%s): talkers are not compiled", cpp_compiler())
            return
        for talker in self.talkers.values():
            talker.compile_blocks()

    def resolve(self, decoding: Decoding) -> Decoding:
        """Give a decoding its number of steps, and refuse one that cannot be used.

        Raises:
            UserError: If its talker or adapter is not there, or the talker does not know its steps or rules.
        """
        if decoding.talker not in self.talkers:
            raise UserError(f"there is no talker {decoding.talker!r} to decode; there are {sorted(self.talkers)}")
        talker = self.talkers[decoding.talker]
        talker.check(decoding)
        self.adapters.check(decoding.adapter)
        return replace(decoding, num_steps=talker.num_steps_of(decoding))

    def resolve_all(self, decodings: Mapping[str, Decoding]) -> dict[str, Decoding]:
        """Resolve decodings by name; see :meth:`resolve`.

        Raises:
            UserError: If one cannot be used, with its name.
        """
        resolved = {}
        for name, decoding in decodings.items():
            try:
                resolved[name] = self.resolve(decoding)
            except UserError as error:
                raise UserError(f"decodings.{name}: {error}") from error
        return resolved

    def write_text(self, query: Tensor, adapter: str | None = None, history: History | None = None) -> ThinkerText:
        """Let the thinker answer one spoken query as fast as the text is read.

        Args:
            query: ``(S,) float32`` at 16 kHz.
            adapter: LoRA adapter that acts on it, also while the text is read; give it to a decoding that has the same.
            history: What was said before it; None if the dialogue begins with it.
        """
        self.adapters.select(adapter)
        return ThinkerText(self.thinker, query, self.max_text_tokens, history)

    def stream(
        self,
        text: ThinkerText,
        decoding: Decoding,
        reply: SpokenReply | None = None,
        pipeline: Pipeline | None = None,
    ) -> Generator[Tensor]:
        """Speak the answer to one query chunk by chunk, under the decoding's adapter, which stays selected.

        Whoever stops listening closes the generator: nothing of the reply runs on then.

        Args:
            text: What the thinker answers, from :meth:`write_text`.
            decoding: Which talker speaks, and how.
            reply: Filled in place as the reply grows: text, tokens, samples, times.
            pipeline: In place of the responder's own.

        Yields:
            Samples of each chunk, ``(n,) float32``.

        Raises:
            UserError: If the decoding cannot be used.
        """
        decoding = self.resolve(decoding)
        self.adapters.select(decoding.adapter)
        talker = self.talkers[decoding.talker]
        max_blocks, pipeline = self.max_blocks_of(talker), pipeline or self.pipeline
        return stream_spoken_reply(text, talker, self.vocoder, decoding, max_blocks, reply, pipeline)

    def max_blocks_of(self, talker: Talker) -> int:
        """Count the blocks of a talker after which its speech is cut off."""
        samples_per_block = self.vocoder.samples_per_token * talker.block_size
        return max(1, round(self.max_speech_s * self.vocoder.sample_rate / samples_per_block))

    def answer(self, text: ThinkerText, decoding: Decoding, pipeline: Pipeline | None = None) -> SpokenReply:
        """Speak the whole answer to one query, and time it; see :meth:`stream`."""
        reply = SpokenReply()
        for _ in self.stream(text, decoding, reply, pipeline):
            pass
        return reply

    def compare(
        self, query: Tensor, decodings: Mapping[str, Decoding], turn: int = 0, history: History | None = None
    ) -> dict[str, SpokenReply]:
        """Answer one query with every decoding in turn, so that a change of the machine's speed hits all.

        The thinker writes once under each adapter; its times count for every decoding that has this adapter, and so
        parts work one after the other, whatever the responder's own pipeline is.

        Args:
            query: ``(S,) float32`` at 16 kHz.
            decodings: What to compare, by name.
            turn: Number of the query; each decoding goes first in turn, since the first finds the caches cold.
            history: What was said before the query.

        Returns:
            The reply of each decoding, in the order of the decodings.
        """
        names = list(decodings)
        texts = {one: self.write_text(query, one, history) for one in {decodings[name].adapter: None for name in names}}
        first = turn % len(names)
        order = names[first:] + names[:first]
        answers = {name: self.answer(texts[decodings[name].adapter], decodings[name], Sequential()) for name in order}
        return {name: answers[name] for name in names}

    def compare_batch(
        self, queries: Sequence[tuple[Tensor, History | None]], decodings: Mapping[str, Decoding]
    ) -> list[dict[str, SpokenReply]]:
        """Answer queries side by side with every decoding: the replies of :meth:`compare`, sooner and without times.

        Args:
            queries: Each ``(S,) float32`` at 16 kHz, and what was said before it.
            decodings: What to compare, by name.

        Returns:
            For each query, the reply of each decoding.
        """
        replies: list[dict[str, SpokenReply]] = [{} for _ in queries]
        resolved = self.resolve_all(decodings)
        for adapter in {decoding.adapter: None for decoding in resolved.values()}:
            texts = [self.write_text(query, adapter, history) for query, history in queries]
            for name, decoding in resolved.items():
                if decoding.adapter == adapter:
                    for of_query, reply in zip(replies, self.speak(texts, decoding), strict=True):
                        of_query[name] = reply
        return [{name: of_query[name] for name in decodings} for of_query in replies]

    def speak(self, texts: Sequence[ThinkerText], decoding: Decoding) -> list[SpokenReply]:
        """Speak texts side by side: what :meth:`answer` says of each, sooner and without times."""
        decoding = self.resolve(decoding)
        self.adapters.select(decoding.adapter)
        talker = self.talkers[decoding.talker]
        return speak_batch(texts, talker, self.vocoder, decoding, self.max_blocks_of(talker))

    def warm_up(self, decodings: Mapping[str, Decoding], device: torch.device) -> None:
        """Decode once with every decoding, so that none pays for lazy initialisation in timed runs."""
        for decoding in decodings.values():
            self.answer(self.write_text(torch.zeros(SAMPLE_RATE_HZ, device=device), decoding.adapter), decoding)
