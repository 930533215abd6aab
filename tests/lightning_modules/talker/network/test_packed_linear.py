"""Packed linear layers: equal to plain ones for all few rows, and never older than the weight."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_modules.adapters.lora import LoraSettings, add_adapter, merge_adapters, select_adapters
from lightning_modules.talker.network import packed_linear
from lightning_modules.talker.network.packed_linear import PackedLinear
from lightning_modules.talker.network.prepared import prepare_for_decoding
from lightning_modules.training.muon_adamw import MuonAdamW

PRECISION = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float64: 0.0}


def make_layer(num_in: int = 24, num_out: int = 17, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(num_in + num_out)
    return nn.Linear(num_in, num_out, bias=bias).to(dtype)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    assert a.dtype == b.dtype and a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small layers take the way of large ones."""
    monkeypatch.setattr(packed_linear, "_MIN_SIZE_TO_FILL_UP", 1)
    monkeypatch.setattr(packed_linear, "_MAX_SIZE_TO_TRANSPOSE", 0)


@given(
    num_rows=st.integers(1, 40),
    num_in=st.integers(1, 70),
    num_out=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from(list(PRECISION)),
)
def test_it_computes_what_the_plain_layer_does(
    num_rows: int, num_in: int, num_out: int, bias: bool, dtype: torch.dtype
) -> None:
    layer = make_layer(num_in, num_out, bias, dtype)
    x = draw(1, num_rows, num_in, dtype=dtype)
    with torch.no_grad():
        assert distance(PackedLinear(layer)(x), layer(x)) <= PRECISION[dtype]


@pytest.mark.usefixtures("is_large")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_so_does_a_large_layer_for_every_number_of_rows(dtype: torch.dtype, bias: bool) -> None:
    layer = make_layer(96, 65, bias, dtype)
    packed = PackedLinear(layer)
    function = packed.as_function(dtype)
    with torch.no_grad():
        for num_rows in range(1, 41):
            x = draw(num_rows, 96, dtype=dtype)
            assert distance(packed(x), layer(x)) <= PRECISION[dtype]
            assert distance(function(x[None]), layer(x)[None]) <= PRECISION[dtype]


def test_a_row_of_zeros_that_fills_up_changes_no_other(is_large: None) -> None:
    packed, x = PackedLinear(make_layer()), draw(4, 24)
    with torch.no_grad():
        assert torch.equal(packed(x[:1])[0], packed(x)[0])


def test_no_rows_and_strided_rows_are_taken() -> None:
    layer = make_layer()
    packed, wide = PackedLinear(layer), draw(2, 5, 48)
    with torch.no_grad():
        assert packed(wide[:, :0, :24]).shape == (2, 0, 17)
        assert distance(packed(wide[:, 1:4, ::2]), layer(wide[:, 1:4, ::2])) < 2e-6


def test_gradients_flow_as_through_the_plain_layer() -> None:
    layer, x = make_layer(), draw(3, 24)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(PackedLinear(layer)(x).square().sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_under_autocast_it_computes_what_the_plain_layer_does(weights: torch.dtype, inputs: torch.dtype) -> None:
    layer, x = make_layer(dtype=weights), draw(3, 24, dtype=inputs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert distance(PackedLinear(layer)(x), layer(x)) < PRECISION[torch.bfloat16]


def test_as_a_function_it_keeps_hooks_and_the_precision_asked_for() -> None:
    packed, x = PackedLinear(make_layer()), draw(3, 24)
    packed.register_forward_hook(lambda module, args, output: output + 1)
    with torch.no_grad():
        expected = nn.functional.linear(x, packed.weight, packed.bias) + 1
        assert torch.equal(packed.as_function(torch.float32)(x), packed(x))
        assert distance(packed.as_function(torch.float32)(x), expected) < 2e-6
        assert distance(packed.as_function(torch.bfloat16)(x).float(), expected) < PRECISION[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fixed_products_are_those_of_the_layer(dtype: torch.dtype) -> None:
    layer = make_layer(bias=False, dtype=dtype)
    fixed = PackedLinear(layer).as_fixed()
    assert fixed is not None
    compiled, plus = (torch.compile(one, fullgraph=True, backend="eager") for one in (fixed, fixed.plus))
    with torch.no_grad():
        for num_rows in (1, 2, 3, 17):
            x, other = draw(num_rows, 24, dtype=dtype), draw(num_rows, 17, dtype=dtype)
            for function, sum_of in ((fixed, fixed.plus), (compiled, plus)):
                assert distance(function(x), layer(x)) <= PRECISION[dtype]
                assert distance(sum_of(other, x), other + layer(x)) <= PRECISION[dtype]


@pytest.mark.usefixtures("is_large")
def test_large_layers_are_filled_up_rather_than_fixed() -> None:
    assert PackedLinear(make_layer(bias=False)).as_fixed() is None


def test_layers_with_bias_or_hooks_are_not_fixed() -> None:
    hooked = PackedLinear(make_layer(bias=False))
    assert hooked.as_fixed() is not None and PackedLinear(make_layer(bias=True)).as_fixed() is None
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    assert hooked.as_fixed() is None


def test_a_compiled_function_multiplies_as_the_plain_layer() -> None:
    packed, x = PackedLinear(make_layer()), draw(3, 24)
    with torch.no_grad():
        for function in (packed, packed.as_function(torch.float32)):
            compiled = torch.compile(function, fullgraph=True, backend="eager")
            assert torch.equal(compiled(x), nn.functional.linear(x, packed.weight, packed.bias))


def test_layers_that_share_a_weight_share_its_copy() -> None:
    layer = make_layer()
    first, second, x = PackedLinear(layer), PackedLinear(layer), draw(3, 24)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        assert first._packs[torch.float32] is second._packs[torch.float32]
        layer.weight.mul_(2.0)
        assert torch.equal(first(x), second(x))
        assert first._packs[torch.float32] is second._packs[torch.float32]


def test_inputs_of_another_precision_are_refused_as_by_the_plain_layer() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype"):
        PackedLinear(make_layer())(draw(3, 24, dtype=torch.bfloat16))


def take_step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    layer(draw(2, 24)).square().sum().backward()
    with torch.no_grad():
        layer(draw(2, 24))  # a copy made between gradients and the step is as old
    optimizer.step()
    optimizer.zero_grad()


def step(layer: nn.Linear) -> None:
    take_step(layer, torch.optim.AdamW(layer.parameters(), lr=0.1))


def step_fused(layer: nn.Linear) -> None:
    take_step(layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True))


def step_muon(layer: nn.Linear) -> None:
    groups = [{"params": [layer.weight], "lr": 0.1}], [{"params": [layer.bias], "lr": 0.1}]
    take_step(layer, MuonAdamW(*groups, (0.9, 0.95), True))


def load(layer: nn.Linear) -> None:
    layer.load_state_dict(make_layer(24, 17).state_dict() | {"weight": draw(17, 24)})


def write_in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[3, 5] += 1.0


def give_new_values(layer: nn.Linear) -> None:
    layer.weight.data = draw(17, 24)


def give_new_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(draw(17, 24))


CHANGES = [step, step_fused, step_muon, load, write_in_place, give_new_values, give_new_parameter]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(change: Callable[[nn.Linear], None]) -> None:
    packed = PackedLinear(make_layer())
    function = packed.as_function(torch.float32)
    x = draw(3, 24)
    with torch.no_grad():
        before = packed(x)
    change(packed)
    with torch.no_grad():
        expected = nn.functional.linear(x, packed.weight, packed.bias)
        assert distance(packed(x), expected) < 2e-6 < distance(before, expected)
        assert distance(function(x), expected) < 2e-6


def test_a_layer_that_is_converted_computes_in_its_new_precision() -> None:
    packed, x = PackedLinear(make_layer()), draw(3, 24)
    with torch.no_grad():
        packed(x)
        for dtype in (torch.bfloat16, torch.float64, torch.float32):
            packed.to(dtype)
            expected = nn.functional.linear(x.to(dtype), packed.weight, packed.bias)
            assert distance(packed(x.to(dtype)), expected) <= PRECISION[dtype]


def test_a_weight_whose_changes_are_not_counted_is_not_copied() -> None:
    with torch.inference_mode():
        packed = PackedLinear(make_layer().requires_grad_(False))
        packed.weight = nn.Parameter(draw(17, 24), requires_grad=False)
        x = draw(3, 24)
        packed(x)
        packed.weight[0] += 1.0
        assert distance(packed(x), nn.functional.linear(x, packed.weight, packed.bias)) < 2e-6


def test_copies_and_files_hold_the_weight_once() -> None:
    packed = PackedLinear(make_layer())
    with torch.no_grad():
        expected = packed(draw(3, 24))
        copied = copy.deepcopy(packed)
        assert list(copied.state_dict()) == ["weight", "bias"]
        packed.weight.zero_()
        assert torch.equal(copied(draw(3, 24)), expected)


def test_adapters_act_on_packed_layers_and_merging_is_noticed() -> None:
    net = nn.ModuleDict({"up": make_layer()})
    prepare_for_decoding(net)
    x = draw(3, 24)
    with torch.no_grad():
        base = net["up"](x)
        add_adapter(net, "loud", LoraSettings(rank=2, targets=["up"]))
        prepare_for_decoding(net)  # the matrices, too
        net["up"].lora_B["loud"].weight.normal_()
        adapted = net["up"](x)
        select_adapters(net, [])
        assert torch.equal(net["up"](x), base)
        select_adapters(net, ["loud"])
        assert torch.equal(net["up"](x), adapted) and distance(adapted, base) > 0.1
        net["up"].lora_B["loud"].weight.mul_(2.0)
        assert distance(net["up"](x) - base, 2 * (adapted - base)) < 1e-5
        merge_adapters(net, ["loud"])
        assert isinstance(net["up"], PackedLinear)
        assert distance(net["up"](x) - base, 2 * (adapted - base)) < 1e-5
