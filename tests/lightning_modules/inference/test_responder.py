"""The whole system speaks, streams, and is timed part by part."""

import pytest
import torch

from lightning_modules.errors import UserError
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.compiled import CompiledBlocks
from lightning_modules.talker.decoding.static.runners import EagerRunner
from lightning_modules.talker.network.packed_linear import PackedLinear
from tests.lightning_modules.talker.conftest import NUM_CODES
from tests.lightning_modules.test_speech_llm import make_batch, make_llm


def test_an_answer_is_timed_and_streams_while_the_thinker_writes() -> None:
    responder = make_llm("ntp", "mdm").eval().responder
    query = make_batch(0).query
    assert query is not None
    for decoding in [Decoding("ntp", 8), Decoding("mdm", 4), Decoding("mdm", 1)]:
        reply = SpokenReply()
        chunks = list(responder.stream(responder.write_text(query[0]), decoding, reply))
        torch.testing.assert_close(torch.cat(chunks), reply.waveform)
        spoken = (reply.waveform[::640] * NUM_CODES).round().long()
        assert torch.equal(spoken, reply.speech_tokens)
        assert len(chunks) == len(reply.num_forwards)
        times = reply.times.as_milliseconds()
        first = reply.first_chunk_times.as_milliseconds()
        assert all(0 < first[part] <= times[part] for part in times)
        assert times["total"] == pytest.approx(sum(value for part, value in times.items() if part != "total"))


def test_without_a_compiler_one_line_says_so_and_talkers_speak(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    llm = make_llm("ntp", compiled_talkers=True).eval()
    (talker,) = llm.responder.talkers.values()
    assert isinstance(talker, AnchoredTalker) and talker.new_runner is EagerRunner
    assert [record.getMessage() for record in caplog.records] == [
        "no C++ compiler (no-such-compiler): talkers are not compiled"
    ]
    monkeypatch.setenv("CXX", "true")
    assert llm.responder.talkers["ntp"] is talker and isinstance(talker.new_runner, CompiledBlocks)
    kept = talker.new_runner
    assert llm.responder.talkers["ntp"] is talker and talker.new_runner is kept


def test_packed_talkers_say_the_same_under_the_same_names_of_weights() -> None:
    packed, plain = (make_llm("ntp", "set_block", packed_talkers=flag).eval() for flag in (True, False))
    query = make_batch(0).query
    assert query is not None
    for decoding in [Decoding("ntp", 8), Decoding("set_block", 4), Decoding("set_block", 1)]:
        found, expected = (
            one.responder.answer(one.responder.write_text(query[0]), decoding) for one in (packed, plain)
        )
        assert torch.equal(found.speech_tokens, expected.speech_tokens) and len(expected.speech_tokens) > 4
    assert isinstance(packed.talkers["ntp"].head, PackedLinear)
    assert not isinstance(plain.talkers["ntp"].head, PackedLinear)
    assert list(packed.state_dict()) == list(plain.state_dict())


def test_a_text_that_was_written_before_counts_as_if_it_were_written_now() -> None:
    responder = make_llm("ntp").eval().responder
    query = make_batch(0).query
    assert query is not None
    text = responder.write_text(query[0])
    assert text.states == [], "it is written when it is read"
    chunks = responder.stream(text, Decoding("ntp", 8))
    next(iter(chunks))
    assert 0 < len(text.states) < 8, "the first chunk does not wait for the whole text"
    list(chunks)
    text.token_s[0] += 1000.0
    again = responder.answer(text, Decoding("ntp", 8))
    live = responder.answer(responder.write_text(query[0]), Decoding("ntp", 8))
    assert again.text == live.text and torch.equal(again.speech_tokens, live.speech_tokens)
    assert again.first_chunk_times.thinker_s > 1000.0 and again.times.thinker_s == pytest.approx(sum(text.token_s))
    assert 0 < again.times.talker_s < 1000.0, "the thinker's seconds are not the talker's"


@pytest.mark.parametrize(
    ("decoding", "message"),
    [(Decoding("mtp", 4), "no talker 'mtp' to decode; there are"), (Decoding("mdm", 5), "num_steps is 5")],
)
def test_a_decoding_that_cannot_be_is_refused_before_anything_is_written(decoding: Decoding, message: str) -> None:
    responder = make_llm("ntp", "mdm").eval().responder
    query = make_batch(0).query
    assert query is not None
    text = responder.write_text(query[0])
    with pytest.raises(UserError, match=message):
        responder.answer(text, decoding)
    assert text.states == []


def test_replies_side_by_side_are_those_one_by_one() -> None:
    decodings = {"ntp": Decoding("ntp"), "mdm_4": Decoding("mdm", 4), "mtp": Decoding("mtp", 4)}
    responder = make_llm("ntp", "mdm", "mtp", decodings=decodings).double().eval().responder
    query = make_batch(0).query
    assert query is not None
    queries = [(one.double(), None) for one in (query[0], query[1, :9_000], query[2])]
    together = responder.compare_batch(queries, decodings)
    for (one, history), replies in zip(queries, together, strict=True):
        alone = responder.compare(one, decodings, 0, history)
        assert list(replies) == list(alone)
        for name, reply in replies.items():
            assert reply.text == alone[name].text and reply.ended == alone[name].ended
            assert reply.speech_tokens.tolist() == alone[name].speech_tokens.tolist()
            assert reply.order.tolist() == alone[name].order.tolist()
            torch.testing.assert_close(reply.waveform, alone[name].waveform)
            assert alone[name].is_timed and not reply.is_timed


def test_a_batch_of_empty_texts_is_spoken_as_each_of_them_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    responder = make_llm("mdm").eval().responder
    monkeypatch.setattr(responder.thinker, "stream", lambda prompt, max_text_tokens: iter(()))
    query = make_batch(0).query
    assert query is not None
    decodings = {"mdm": Decoding("mdm", 2)}
    (reply,) = responder.compare_batch([(query[0], None)], decodings)
    alone = responder.compare(query[0], decodings)["mdm"]
    assert reply["mdm"].speech_tokens.tolist() == alone.speech_tokens.tolist()
