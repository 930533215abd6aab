"""Talkers learn and speak on a GPU as they do on the CPU, whose attention is written out in another way."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.masked.distillation import SelfDistillation
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.attention import CausalContextAttention
from tests.lightning_modules.talker.conftest import NUM_CODES, in_steps, make_talker, make_text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = ("ntp", "mtp", "mdm", "set_block")


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Turn TF32 off, which rounds inputs to 10 bits."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


def text_on(device: str) -> TextStates:
    text = make_text([5, 2, 9])
    return TextStates(text.hidden.to(device), text.embedding.to(device), text.lengths.to(device))


def learn(kind: str, device: str, distils: bool, is_flex: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the loss of a batch of which all is masked, and its gradients."""
    talker: Talker = make_talker(kind).to(device).train()
    assert isinstance(talker, AnchoredTalker)
    talker.backbone.flex_attention = is_flex
    if isinstance(talker, MaskedTalker):
        talker.masking = BlockBernoulli(1.0, 1.0)
    units = torch.randint(0, NUM_CODES, (3, 20), generator=torch.Generator().manual_seed(1)).to(device)
    lengths = torch.tensor([20, 7, 16])
    generator = torch.Generator().manual_seed(0)
    if distils:
        assert isinstance(talker, MaskedTalker)
        teacher = make_talker(kind).to(device)
        teacher.backbone.flex_attention = is_flex  # type: ignore[union-attr]
        batch = talker.corrupt(text_on(device), units, lengths, generator)
        output = talker.distil(teacher, batch, SelfDistillation(alpha=0.5, num_steps=2), generator)  # type: ignore[arg-type]
    else:
        output = talker(text_on(device), units, lengths, generator)
    output.loss.backward()
    gradients = {name: one.grad.cpu() for name, one in talker.named_parameters() if one.grad is not None}
    return output.loss.detach().cpu(), gradients


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.compile, about TF32 and its own inputs
@pytest.mark.parametrize("is_flex", [False, True])
@pytest.mark.parametrize(("kind", "distils"), [*((kind, False) for kind in KINDS), ("mdm", True), ("set_block", True)])
def test_losses_and_gradients_are_those_of_the_cpu(kind: str, distils: bool, is_flex: bool) -> None:
    (on_cpu, expected), (on_gpu, found) = (learn(kind, device, distils, is_flex) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_are_spoken(kind: str) -> None:
    spoken = []
    for device in ("cpu", "cuda"):
        talker, text = make_talker(kind).to(device), text_on(device)
        chunks = list(talker.stream(states_of_row(text, 2), 4, in_steps()))
        assert all(chunk.tokens.device.type == device for chunk in chunks)
        spoken.append(torch.cat([chunk.tokens.cpu() for chunk in chunks]).tolist())
    assert spoken[0] == spoken[1]


@pytest.mark.parametrize("kind", KINDS)
def test_under_bfloat16_most_tokens_are_the_same(kind: str) -> None:
    spoken = []
    for device in ("cpu", "cuda"):
        talker, text = make_talker(kind).to(device), text_on(device)
        with torch.autocast(device, torch.bfloat16):
            (chunk, *_) = talker.stream(states_of_row(text, 2), 1, in_steps())
        spoken.append(chunk.tokens.cpu().tolist())
    agreeing = sum(a == b for a, b in zip(*spoken, strict=False))
    assert agreeing >= 0.5 * max(map(len, spoken)), "rounding may change a token, and what comes behind it"


def test_attention_by_mask_equals_attention_by_structure() -> None:
    states = torch.randn(3, 2, 2, 42, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        attention = CausalContextAttention(3, 4, 2, 2, torch.device(device))
        found.append(attention(*states.to(device)).cpu())
        num_noisy = attention.num_noisy
        cached = [states[0][:, :, :num_noisy], *(one.roll(-num_noisy, dims=2) for one in states[1:])]
        found.append(attention.after_clean(*(one.to(device) for one in cached)).cpu())
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], found[1], rtol=1e-4, atol=1e-5)
