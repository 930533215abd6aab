"""Flex attention sees what the dense masks of training let it see, and learns the same from it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from lightning_modules.talker.masked.distillation import SelfDistillation
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.noisy_blocks import DrawnBlocks
from lightning_modules.talker.network import attention as attention_module
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.attention import CausalContextAttention, FlexAttention
from lightning_modules.talker.network.attention_masks import (
    anchored_causal_order,
    block_causal_order,
    mask_from_order,
    visible_in_causal_context,
    visible_in_clean_context,
    visible_up_to,
)
from lightning_modules.talker.network.backbone import DecoderLayer, RotaryPositions
from lightning_modules.talker.set_block import SetBlockTalker
from tests.lightning_modules.talker.conftest import NUM_CODES, make_talker, make_text


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU use flex attention, without a kernel.

    PyTorch refuses gradients of it there, for want of a kernel; those of its plain operators are right.
    """
    monkeypatch.setattr(flex_module, "_validate_device", lambda *states: None)
    monkeypatch.setattr(attention_module, "_can_flex", lambda device: True)
    plain = torch.compile(flex_module.flex_attention, backend="eager", fullgraph=True)
    monkeypatch.setattr(attention_module, "_fused_flex_attention", lambda: plain)


def learn(kind: str, is_flex: bool, distils: bool) -> tuple[Tensor, dict[str, Tensor], list[object]]:
    """Give the loss of a batch, its gradients, and what the layers attended by."""
    talker = make_talker("set_block" if kind == "drawn_blocks" else kind).double().train()
    if kind == "drawn_blocks":
        assert isinstance(talker, SetBlockTalker)
        talker.noisy_blocks = DrawnBlocks(3, off_grid_share=0.4, fully_masked_share=0.3)
    talker.backbone.flex_attention = is_flex  # type: ignore[union-attr]
    attended_by: list[object] = []
    layer = talker.backbone.layers[0]  # type: ignore[union-attr,index]
    layer.register_forward_pre_hook(lambda module, args: attended_by.append(args[2]))
    text = make_text([5, 2, 9])
    text = TextStates(text.hidden.double(), text.embedding.double(), text.lengths)
    units = torch.randint(0, NUM_CODES, (3, 20), generator=torch.Generator().manual_seed(1))
    lengths, generator = torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0)
    if distils:
        assert isinstance(talker, MaskedTalker)
        batch = talker.corrupt(text, units, lengths, generator)
        output = talker.distil(talker, batch, SelfDistillation(alpha=0.5, num_steps=2), generator)
    else:
        output = talker(text, units, lengths, generator)
    output.loss.backward()
    gradients = {name: one.grad for name, one in talker.named_parameters() if one.grad is not None}
    return output.loss.detach(), gradients, attended_by


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch.compile of its own inputs
@pytest.mark.parametrize(
    ("kind", "distils"),
    [
        ("set_block", False),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in ("ntp", "mtp", "mdm", "drawn_blocks")),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("mdm", "set_block", "drawn_blocks")),
    ],
)
def test_losses_and_gradients_are_those_of_the_dense_mask(flex_on_cpu: None, kind: str, distils: bool) -> None:
    (dense, expected, masks), (flex, found, attended_by) = (learn(kind, is_flex, distils) for is_flex in (False, True))
    of_flex = [one.of_all if isinstance(one, CausalContextAttention) else one for one in attended_by]
    assert {"FlexAttention", "method"} >= {type(one).__name__ for one in of_flex} and len(of_flex) == len(masks)
    assert not any(isinstance(one, FlexAttention) for one in masks)
    torch.testing.assert_close(flex, dense, rtol=1e-10, atol=1e-10)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_a_cpu_attends_by_masks_whatever_is_told() -> None:
    losses = [learn(kind, is_flex, False)[0] for kind in ("ntp", "set_block") for is_flex in (False, True)]
    assert losses[0] == losses[1] and losses[2] == losses[3]
    assert isinstance(CausalContextAttention(2, 4, 2, 1, is_flex=True).of_all, Tensor)


@settings(deadline=None, max_examples=25)
@given(
    num_blocks=st.integers(1, 4),
    block_size=st.integers(1, 4),
    num_anchors=st.integers(0, 3),
    num_copies=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_pairs_are_allowed_as_the_mask_says(
    num_blocks: int, block_size: int, num_anchors: int, num_copies: int, seed: int
) -> None:
    sizes = num_blocks, block_size, num_anchors
    blocks = block_causal_order(num_blocks, block_size)
    order = anchored_causal_order(*sizes)
    last_start = (num_blocks - 1) * block_size
    starts = torch.randint(0, last_start + 1, (2, 3), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(visible_up_to(order).mask, mask_from_order(order, order))
    cases = [
        (visible_in_clean_context(blocks, num_copies), num_copies * len(blocks)),
        (visible_in_causal_context(*sizes, num_copies), num_copies * len(blocks)),
        (visible_in_causal_context(*sizes, starts=starts), 3 * block_size),
    ]
    for whole, num_noisy in cases:
        mask = whole.mask
        after_clean = mask[..., :num_noisy, :].roll(-num_noisy, dims=-1)
        clean = mask[..., num_noisy:, num_noisy:]
        parts = ((whole, mask), (whole.after_clean(num_noisy), after_clean), (whole.of_clean(num_noisy), clean))
        for visible, expected in parts:
            assert torch.equal(visible.mask, expected)
            queries, keys = torch.arange(expected.shape[-2])[:, None], torch.arange(expected.shape[-1])
            rows = torch.arange(visible.num_rows or 1)[:, None, None]
            allowed = visible.rule()(rows, rows, queries, keys).expand(len(rows), -1, -1)
            assert torch.equal(allowed, expected.reshape(-1, *expected.shape[-2:]).expand_as(allowed))


@pytest.mark.slow
@torch.no_grad()
def test_a_layer_with_it_is_one_graph_for_batches_of_any_length(flex_on_cpu: None) -> None:
    layer = DecoderLayer(32, 2, 64)
    num_graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal num_graphs
        num_graphs += 1
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    rotary = RotaryPositions(16)
    for num_blocks in (2, 3, 5):
        visible = visible_in_causal_context(num_blocks, 8, 2)
        x = torch.randn(2, len(visible.query_block), 32, generator=torch.Generator().manual_seed(0))
        rotation = rotary(torch.arange(x.shape[1]))
        torch.testing.assert_close(
            compiled(x, rotation, FlexAttention(visible), None, 0), layer(x, rotation, visible.mask, None, 0)
        )
    assert num_graphs == 1, "other lengths compile nothing"
