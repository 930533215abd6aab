"""Prepared talkers decode as plain ones do."""

import copy

import pytest
import torch
from torch import nn

from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.streaming import states_of_row
from lightning_modules.talker.network import packed_linear
from lightning_modules.talker.network.packed_linear import PackedLinear
from lightning_modules.talker.network.prepared import prepare_for_decoding, prepared_for_decoding, restore_layers
from tests.lightning_modules.talker.conftest import in_steps, make_text


def speak(talker: Talker, num_steps: int) -> list[int]:
    chunks = talker.stream(states_of_row(make_text([7]), 0), 3, in_steps(num_steps))
    return [int(token) for chunk in chunks for token in chunk.tokens]


def is_packed(talker: Talker) -> list[bool]:
    return [isinstance(one, PackedLinear) for one in talker.modules() if isinstance(one, nn.Linear)]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_prepared_talker_says_the_same(any_talker: Talker, is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_large:
        monkeypatch.setattr(packed_linear, "_MIN_SIZE_TO_FILL_UP", 1)
        monkeypatch.setattr(packed_linear, "_MAX_SIZE_TO_TRANSPOSE", 0)
    for num_steps in any_talker.supported_steps[:2]:
        expected = speak(any_talker, num_steps)
        with prepared_for_decoding(any_talker):
            assert all(is_packed(any_talker))
            assert speak(any_talker, num_steps) == expected and len(expected) > 8


def test_float64_is_left_to_the_plain_product(any_talker: Talker) -> None:
    any_talker.double()
    num_steps = any_talker.supported_steps[0]
    expected = speak(any_talker, num_steps)
    with prepared_for_decoding(any_talker):
        assert speak(any_talker, num_steps) == expected
        assert not any(one._packs for one in any_talker.modules() if isinstance(one, PackedLinear))


def test_a_prepared_talker_that_learns_speaks_with_its_new_weights(any_talker: Talker) -> None:
    prepare_for_decoding(any_talker)
    num_steps = any_talker.supported_steps[0]
    before = speak(any_talker, num_steps)
    any_talker.reset_parameters(torch.Generator().manual_seed(99))
    plain = copy.deepcopy(any_talker)
    restore_layers(plain)
    assert not any(is_packed(plain))
    assert speak(any_talker, num_steps) == speak(plain, num_steps) != before


def test_preparing_changes_no_parameter_and_can_be_repeated_and_taken_back(any_talker: Talker) -> None:
    parameters = dict(any_talker.named_parameters())
    layers = len(is_packed(any_talker))
    assert prepare_for_decoding(any_talker) == layers == prepare_for_decoding(any_talker)
    assert all(one is parameters[name] for name, one in any_talker.named_parameters())
    assert list(dict(any_talker.named_parameters())) == list(parameters)
    restore_layers(any_talker)
    assert not any(is_packed(any_talker))
    assert all(one is parameters[name] for name, one in any_talker.named_parameters())


def test_a_layer_under_two_names_stays_one_and_a_hooked_one_is_left_alone() -> None:
    shared, hooked = nn.Linear(3, 3), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": hooked})
    assert prepare_for_decoding(net) == 1
    assert net["a"] is net["b"][0] and net["c"] is hooked
    restore_layers(net)
    assert net["a"] is net["b"][0] and type(net["a"]) is nn.Linear
