"""A thinker hears or reads earlier turns in their place; a dialogue of one turn is what it was."""

from dataclasses import replace

import pytest
import torch

from datamodules.batch import SpokenBatch
from lightning_modules.dialogue import History, Turn
from lightning_modules.errors import UserError
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.dialogue.settings import DialogueSettings
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import REPLIES, make_language_model, make_speech_encoder, make_tokenizer

Speech = tuple[torch.Tensor, torch.Tensor]
QUERIES = ["Yes?", "Yes", "I will."]


def noise(num_samples: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


SPOKEN = [noise(4000, 1), noise(9000, 2), noise(2500, 3)]
WILL, YES = Turn("assistant", "I will."), Turn("assistant", "Yes.")
TURNS = [
    [Turn("user", "Yes?", is_spoken=True), WILL, Turn("user", "Seven."), YES],
    [],
    [Turn("user", "A city?", is_spoken=True), Turn("assistant", "Paris."), Turn("user", "I?", is_spoken=True), YES],
]
SPEECH: list[list[torch.Tensor]] = [SPOKEN[:1], [], SPOKEN[1:]]


def make_thinker(settings: DialogueSettings | None = None) -> Thinker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), make_tokenizer()
        return Thinker(*parts, dialogue=settings).eval()


def embed(thinker: Thinker, text: str) -> torch.Tensor:
    return thinker.language_model.embed(
        torch.tensor(thinker.prompt.tokenizer(text, add_special_tokens=False).input_ids)
    )


def embed_audio(thinker: Thinker, samples: torch.Tensor) -> torch.Tensor:
    return thinker.adaptor(*thinker.speech_encoder(samples[None], torch.tensor([len(samples)])))[0][0]


def test_without_earlier_turns_nothing_changes(speech: Speech) -> None:
    thinker = make_thinker()
    plain = thinker(*speech, REPLIES, QUERIES)
    empty = thinker(*speech, REPLIES, QUERIES, History.of([[], [], []], [[], [], []]))
    for name, value in vars(plain).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(vars(empty)[name])), name
    prompt = thinker.encode(speech[0][0, :16000]).embeddings[0]
    audio = embed_audio(thinker, speech[0][0, :16000])
    parts = embed(thinker, "<|im_start|>user\n"), audio, embed(thinker, "<|im_end|>\n<|im_start|>assistant\n")
    assert torch.equal(prompt, torch.cat(parts)), "bit by bit"


def test_turns_stand_in_their_order_with_audio_in_its_place() -> None:
    thinker = make_thinker()
    query = noise(5000, 4)
    prompt = thinker.encode(query, History.of(TURNS[2:], SPEECH[2:])).embeddings[0]
    pieces = [
        embed(thinker, "<|im_start|>user\n"),
        embed_audio(thinker, SPOKEN[1]),
        embed(thinker, "<|im_end|>\n<|im_start|>assistant\nParis.<|im_end|>\n<|im_start|>user\n"),
        embed_audio(thinker, SPOKEN[2]),
        embed(thinker, "<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\n"),
        embed_audio(thinker, query),
        embed(thinker, "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    torch.testing.assert_close(prompt, torch.cat(pieces), atol=1e-5, rtol=1e-5)


def test_a_dialogue_in_a_batch_is_the_dialogue_alone(speech: Speech) -> None:
    thinker = make_thinker()
    waveform, lengths = speech
    batch = thinker(waveform, lengths, REPLIES, history=History.of(TURNS, SPEECH))
    nll, num_targets = 0.0, 0
    for row, reply in enumerate(REPLIES):
        own = waveform[row : row + 1, : lengths[row]], lengths[row : row + 1], [reply]
        alone = thinker(*own, history=History.of([TURNS[row]], [SPEECH[row]]))
        num_tokens = int(alone.lengths[0])
        torch.testing.assert_close(batch.hidden[row, :num_tokens], alone.hidden[0], atol=1e-5, rtol=1e-5)
        nll += float(alone.loss.detach()) * (num_tokens + 1)
        num_targets += num_tokens + 1
    assert int(batch.num_scored_tokens) == num_targets, "only the last replies are scored"
    assert float(batch.loss.detach()) == pytest.approx(nll / num_targets, abs=1e-5)
    without = thinker(waveform, lengths, REPLIES)
    changed = [not torch.allclose(batch.hidden[row, 0], without.hidden[row, 0], atol=1e-3) for row in range(3)]
    assert changed == [True, False, True], "a thinker hears what was said before"


def test_padding_of_earlier_speech_is_not_heard(speech: Speech) -> None:
    thinker = make_thinker()
    history = History.of(TURNS, SPEECH)
    assert history.speech is not None
    longer = History(
        history.turns, torch.nn.functional.pad(history.speech, (0, 7000), value=0.5), history.speech_lengths
    )
    one, two = thinker(*speech, REPLIES, history=history), thinker(*speech, REPLIES, history=longer)
    torch.testing.assert_close(one.hidden, two.hidden, atol=1e-5, rtol=1e-5)


def test_a_streamed_reply_is_that_of_the_gold_pass(speech: Speech) -> None:
    """The streamed text, given as gold, is the most probable text under the same history."""
    thinker = make_thinker()
    query, history = speech[0][0, :16000], History.of(TURNS[2:], SPEECH[2:])
    tokens = list(thinker.stream(thinker.encode(query, history), max_new_tokens=6))
    prompt = thinker.encode(query, history).embeddings
    hidden = thinker.language_model(torch.cat([prompt, torch.stack([one.embedding for one in tokens])[None]], dim=1))[0]
    states = torch.stack([one.hidden for one in tokens])
    torch.testing.assert_close(hidden[prompt.shape[1] - 1 : -1], states, atol=1e-4, rtol=1e-4)
    assert [one.token_id for one in thinker.stream(thinker.encode(query), 6)] != [one.token_id for one in tokens]


def test_read_dialogues_hold_text_in_the_place_of_audio() -> None:
    thinker = make_thinker()
    output = thinker.read(QUERIES[:1], REPLIES[:1], History.of(TURNS[:1], SPEECH[:1]))
    ids = thinker.prompt.tokenizer(
        "<|im_start|>user\n Yes?<|im_end|>\n<|im_start|>assistant\nI will.<|im_end|>\n"
        "<|im_start|>user\nSeven.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        f"<|im_start|>user\n {QUERIES[0]}<|im_end|>\n<|im_start|>assistant\n{REPLIES[0]}",
        add_special_tokens=False,
    ).input_ids
    hidden = thinker.language_model(thinker.language_model.embed(torch.tensor([ids])))[0]
    num_tokens = int(output.lengths[0])
    torch.testing.assert_close(output.hidden[0], hidden[-num_tokens - 1 : -1], atol=1e-5, rtol=1e-5)
    unknown = History.of([[Turn("user", is_spoken=True), Turn("assistant", "Yes.")]], [SPOKEN[:1]])
    with pytest.raises(UserError, match="earlier turn 1 is speech without a transcript"):
        thinker.read(QUERIES[:1], REPLIES[:1], unknown)


def test_earlier_speech_teaches_the_adaptor(speech: Speech) -> None:
    thinker = make_thinker().train()
    history = History.of(TURNS, SPEECH)
    assert history.speech is not None
    heard = history.map(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
    thinker(*speech, REPLIES, history=heard).loss.backward()
    assert heard.speech is not None and heard.speech.grad is not None
    assert all(row.abs().sum() > 0 for row in heard.speech.grad)


def test_a_dialogue_that_is_too_long_is_refused_or_loses_its_oldest_turns(speech: Speech) -> None:
    waveform, lengths = speech[0][2:], speech[1][2:]
    history, reply = History.of(TURNS[2:], SPEECH[2:]), REPLIES[2:]
    needed = make_thinker().encode(waveform[0], history).embeddings.shape[1] + len(
        make_thinker().prompt.encode_replies(reply)[0]
    )
    exact = make_thinker(DialogueSettings(max_context_tokens=needed))
    assert exact(waveform, lengths, reply, history=history).num_dropped_turns == 0
    short = make_thinker(DialogueSettings(max_context_tokens=needed - 1))
    with pytest.raises(
        UserError, match=rf"dialogue 0 of the batch takes {needed} tokens with 4 .* room for {needed - 1}"
    ):
        short(waveform, lengths, reply, history=history)
    dropping = make_thinker(DialogueSettings(max_context_tokens=needed - 1, drop_oldest_turns=True))
    output = dropping(waveform, lengths, reply, history=history)
    assert output.num_dropped_turns == 2
    kept = exact(waveform, lengths, reply, history=History.of([TURNS[2][2:]], [SPEECH[2][1:]]))
    torch.testing.assert_close(output.hidden, kept.hidden, atol=1e-5, rtol=1e-5)
    assert dropping.encode(waveform[0], history, reply_tokens=30).num_dropped_turns == 4
    tiny = make_thinker(DialogueSettings(max_context_tokens=5, drop_oldest_turns=True))
    with pytest.raises(UserError, match="with 0 earlier turns .*shorten its query or its reply"):
        tiny(waveform, lengths, reply, history=history)


def test_the_positions_of_the_language_model_are_the_limit(speech: Speech) -> None:
    thinker = make_thinker()
    assert thinker.context.max_tokens == thinker.language_model.max_positions == 2048
    with pytest.raises(UserError, match=r"tokens for the reply, but there is room for 2048 \(the language model's"):
        thinker.encode(speech[0][0], reply_tokens=2048)


def test_the_objective_learns_from_dialogues_and_counts_what_it_dropped(speech: Speech) -> None:
    batch = SpokenBatch(
        ["a", "b", "c"], REPLIES, QUERIES, query=speech[0], query_lengths=speech[1], history=History.of(TURNS, SPEECH)
    )
    prompt = make_thinker().encode(speech[0][0, :16000], History.of(TURNS[:1], SPEECH[:1])).embeddings
    thinker = make_thinker(DialogueSettings(max_context_tokens=prompt.shape[1], drop_oldest_turns=True))
    terms, scalars, _ = ThinkerObjective(reply=1.0, transcript=0.5, text=0.5)(thinker, batch)
    assert len(terms) == 3 and scalars["train/loss"].isfinite()
    output = thinker(*speech, REPLIES, history=batch.history)
    assert float(scalars["train/num_dropped_turns"]) == output.num_dropped_turns > 0
    assert "train/num_dropped_turns" not in ThinkerObjective()(thinker, replace(batch, history=None))[1]


def test_histories_must_fit_the_batch(speech: Speech) -> None:
    with pytest.raises(UserError, match="there are 3 queries, but earlier turns of 2 dialogues"):
        make_thinker()(*speech, REPLIES, history=History.of(TURNS[:2], SPEECH[:2]))
