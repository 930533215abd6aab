"""On a GPU each stage has a stream: the reply is the one of a single stream, and on the CPU."""

import threading

import pytest
import torch
from torch import Tensor

from lightning_modules.inference.pipelines import Overlapped, Sequential
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.inference.surroundings import Surroundings, take_over
from lightning_modules.inference.timeline import STAGES, TALKER, THINKER
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.thinker.writing.writing import GrowingCache, PreallocatedCache
from tests.lightning_modules.test_speech_llm import make_batch, make_llm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DECODINGS = {"ntp": Decoding("ntp", 8), "mdm": Decoding("mdm", 4), "set_block": Decoding("set_block", 2)}


def query_on_gpu() -> Tensor:
    query = make_batch(0).query
    assert query is not None
    return query[0].double().cuda()


@pytest.mark.parametrize("name", DECODINGS)
def test_streams_change_no_token_and_no_sample(name: str) -> None:
    llm = make_llm(name).double().eval().cuda()
    responder, query = llm.responder, query_on_gpu()
    expected = responder.answer(responder.write_text(query), DECODINGS[name], Sequential())
    assert len(expected.speech_tokens) > 8
    for _ in range(5):  # a missing wait would show now and then only
        reply = responder.answer(responder.write_text(query), DECODINGS[name], Overlapped())
        assert reply.text == expected.text and torch.equal(reply.speech_tokens, expected.speech_tokens)
        assert torch.equal(reply.waveform, expected.waveform) and torch.equal(reply.order, expected.order)
        assert len(reply.timeline.of(TALKER)) == len(reply.num_forwards) and reply.timeline.of(THINKER)
    assert not {thread.name for thread in threading.enumerate()} & set(STAGES)


def test_a_reply_that_is_left_leaves_a_gpu_that_works() -> None:
    llm = make_llm("mdm").double().eval().cuda()
    responder, query = llm.responder, query_on_gpu()
    expected = responder.answer(responder.write_text(query), DECODINGS["mdm"])
    chunks = responder.stream(responder.write_text(query), DECODINGS["mdm"], SpokenReply(), Overlapped(1, 1))
    first = next(chunks)
    chunks.close()
    torch.testing.assert_close(first.cpu(), expected.waveform[: len(first)].to(first.dtype))
    again = responder.answer(responder.write_text(query), DECODINGS["mdm"], Overlapped())
    assert torch.equal(again.speech_tokens, expected.speech_tokens)


def test_who_takes_an_item_over_waits_for_the_stream_that_makes_it() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    surroundings = Surroundings(device)
    with surroundings.entered():
        torch.cuda._sleep(50_000_000)
        item = {"late": torch.full((1 << 20,), 3.0, device=device)}["late"]
        event = surroundings.mark()
        assert event is not None and not event.query(), "the host is ahead of the stream"
        with torch.cuda.stream(torch.cuda.Stream(device)):
            take_over((item,), event)
            total = item.sum()
            torch.cuda.current_stream().synchronize()
            assert event.query() and total.item() == 3.0 * (1 << 20)


def test_a_thinker_writes_the_same_into_fixed_buffers_and_waits_once_per_look() -> None:
    llm = make_llm("mdm").double().eval().cuda()
    thinker = llm.thinker
    prompt = thinker.encode(query_on_gpu())
    grown, fixed = (
        [token.token_id for token in thinker.stream(prompt, 8, writing)]
        for writing in (GrowingCache(), PreallocatedCache(4))
    )
    assert grown == fixed and len(grown) == 8
    model, stop_ids = thinker.language_model, thinker.prompt.stop_ids(thinker.language_model.end_ids)
    waits = []
    for num_tokens in (4, 8):
        with torch.profiler.profile(acc_events=True) as profile:
            list(PreallocatedCache(4).write(model, prompt.embeddings, num_tokens, stop_ids))
        names = [event.name for event in profile.events()]
        waits.append(sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for name in names))
    assert waits[0] > 0 and waits[1] - waits[0] <= 1, "four more tokens are one more look"
