"""A backbone over a static cache gives what it gives without, under autocast and behind changes of weights, too."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.talker.network.attention_masks import mask_from_order
from lightning_modules.talker.network.backbone import TalkerBackbone
from lightning_modules.talker.network.decoding_network import DecodingNetwork, cast_weight
from lightning_modules.talker.network.prepared import prepare_for_decoding

WIDTH, LENGTH = 32, 6


def make_backbone() -> TalkerBackbone:
    torch.manual_seed(0)
    return TalkerBackbone(WIDTH, num_layers=2, num_heads=2).eval()


@torch.no_grad()
def run_static(
    backbone: TalkerBackbone, x: Tensor, num_wanted: int = LENGTH, num_more_keys: int = 0, start: int | None = 0
) -> Tensor:
    """Run causally; slots behind the written ones hold rubbish."""
    network = DecodingNetwork(backbone, 16)
    cache = network.new_cache(len(x), 16)
    for buffer in cache.buffers:
        buffer.fill_(7.0)
    order = torch.arange(LENGTH)
    keys = torch.arange(LENGTH + num_more_keys)
    mask = torch.zeros(LENGTH, len(keys), dtype=network.dtype).masked_fill_(keys > order[:, None], -torch.inf)
    with torch.autocast("cpu", enabled=False):
        return network(x, network.window(order, order, mask, start), cache.open(len(keys)), num_wanted)


@torch.no_grad()
def run_plainly(backbone: TalkerBackbone, x: Tensor) -> Tensor:
    order = torch.arange(LENGTH)
    return backbone(x, order, mask_from_order(order, order))


@pytest.mark.parametrize("start", [0, None])
@pytest.mark.parametrize(("num_wanted", "num_more_keys"), [(LENGTH, 0), (2, 0), (1, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_it_gives_the_hidden_states_of_the_backbone(
    num_wanted: int, num_more_keys: int, start: int | None, scale: float
) -> None:
    """Whether the host knows the slots or not; small inputs show that norms have their `eps`."""
    backbone, x = make_backbone().double(), scale * torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    found = run_static(backbone, x, num_wanted, num_more_keys, start)
    torch.testing.assert_close(found, run_plainly(backbone, x)[:, -num_wanted:])


class Twofold(nn.Module):
    """Stands in the place of a linear layer, as LoRA does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize("how", ["plain", "packed", "wrapped"])
def test_under_autocast_it_computes_what_autocast_does(how: str) -> None:
    backbone, x = make_backbone(), torch.randn(2, LENGTH, WIDTH)
    if how == "wrapped":
        for layer in backbone.layers:
            layer.down = Twofold(layer.down)  # type: ignore[assignment, arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        expected = run_plainly(backbone, x)
        if how == "packed":
            prepare_for_decoding(backbone)
        found = run_static(backbone, x)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_weight_is_converted_once_and_again_when_it_has_changed() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    first = cast_weight(weight, torch.bfloat16)
    assert cast_weight(weight, torch.bfloat16) is first and first.dtype == torch.bfloat16
    assert cast_weight(weight, torch.float64).dtype == torch.float64
    for settings in ({"fused": True}, {"foreach": True}):
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=0.5, **settings).step()
        assert torch.equal(cast_weight(weight, torch.bfloat16), weight.detach().bfloat16())
    with torch.no_grad():
        weight.mul_(3)
    assert torch.equal(cast_weight(weight, torch.bfloat16), weight.detach().bfloat16())
    weight.data = torch.zeros(4, 4)
    assert not cast_weight(weight, torch.bfloat16).any()
