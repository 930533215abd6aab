"""A reply is the same whether its keys and values grow or lie in fixed buffers, and whenever the host looks at it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lightning_modules.errors import UserError
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.outputs import ThinkerToken
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.thinker.writing.writing import GrowingCache, PreallocatedCache, Writing, writing_for
from tests.lightning_modules.thinker.tiny import make_language_model

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128,
}  # fmt: skip


def make(config: PreTrainedConfig) -> LanguageModel:
    torch.manual_seed(3)
    return with_distinct_logits(LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")))


def with_distinct_logits(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


def embedded() -> LanguageModel:
    torch.manual_seed(3)
    return make_language_model().eval()


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "embedded": embedded,
    "qwen3": lambda: make(Qwen3Config(**SIZES, head_dim=16)),
    "qwen2.5": lambda: make(Qwen2Config(**SIZES)),
    "llama": lambda: make(LlamaConfig(**SIZES, pad_token_id=None)),
    "mistral, sliding window": lambda: make(MistralConfig(**SIZES, sliding_window=9)),
}


def prompt_of(model: LanguageModel, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(1, length, model.embedding_size, generator=generator, dtype=model.dtype)


def write(model: LanguageModel, writing: Writing, length: int, most: int, *stop_ids: int) -> list[ThinkerToken]:
    return list(writing.write(model, prompt_of(model, length), most, stop_ids))


@pytest.mark.parametrize("name", MODELS)
def test_fixed_buffers_hold_what_growing_ones_hold(name: str) -> None:
    model = MODELS[name]().double()
    expected = write(model, GrowingCache(), 7, 12)
    assert len({token.token_id for token in expected}) > 3, "a reply of one word tests little"
    for tokens_per_look in (1, 4, 5):
        found = write(model, PreallocatedCache(tokens_per_look), 7, 12)
        assert [one.token_id for one in found] == [one.token_id for one in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-10, atol=1e-10)
            assert torch.equal(one.embedding, other.embedding)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 9), most=st.integers(0, 11), end=st.integers(0, 12), per_look=st.integers(1, 6))
def test_what_is_surplus_is_dropped(length: int, most: int, end: int, per_look: int) -> None:
    ids = [token.token_id for token in write(MODEL, GrowingCache(), length, 12)]
    stop_ids = (ids[end],) if end < len(ids) else ()
    expected = write(MODEL, GrowingCache(), length, most, *stop_ids)
    found = write(MODEL, PreallocatedCache(per_look), length, most, *stop_ids)
    assert [one.token_id for one in found] == [one.token_id for one in expected]
    assert len(found) <= most and not {one.token_id for one in found} & set(stop_ids)


MODEL = embedded().double()


@pytest.mark.parametrize("name", ["embedded", "qwen2.5"])
def test_under_autocast_the_same_is_written(name: str) -> None:
    model = MODELS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        grown, fixed = (
            [one.token_id for one in write(model, writing, 7, 12)] for writing in (GrowingCache(), PreallocatedCache())
        )
    assert grown == fixed


class _Reads(TorchDispatchMode):
    """Counts the numbers that the host asks a tensor for: on a GPU it waits for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (
            torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal
        )  # fmt: skip
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_no_pass_asks_the_device_for_a_number(name: str) -> None:
    model = MODELS[name]()
    with _Reads() as reads:
        assert int(torch.ones(())) == reads.count == 1
    with _Reads() as reads:
        assert len(write(model, PreallocatedCache(4), 7, 12)) == 12
    assert reads.count == 0, "tokens reach the host as one copy per look"


def test_a_thinker_streams_the_same_either_way(thinker: Thinker, speech: tuple[Tensor, Tensor]) -> None:
    thinker = thinker.eval()
    prompt = thinker.encode(speech[0][0])
    grown, fixed = (
        [one.token_id for one in thinker.stream(prompt, 9, writing)] for writing in (None, PreallocatedCache(4))
    )
    assert grown == fixed and len(grown) == 9
    assert isinstance(writing_for(torch.device("cpu")), GrowingCache)
    assert isinstance(writing_for(torch.device("cuda")), PreallocatedCache)


def test_a_look_at_no_token_is_refused() -> None:
    with pytest.raises(UserError, match="tokens_per_look is 0"):
        PreallocatedCache(0)
