"""Compiled layers learn what plain ones do, and a machine without a compiler trains as it is."""

import pytest
import torch

from callbacks.compiled_talkers import CompiledTalkers
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.network.backbone import DecoderLayer
from tests.lightning_modules.test_speech_llm import fit, make_llm

# Lightning warns of the frozen thinker and of loaders without worker processes.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def layers_of(llm: SpeechLLM) -> list[DecoderLayer]:
    return [layer for layer in llm.talkers.modules() if isinstance(layer, DecoderLayer)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while it traces
def test_compiled_layers_learn_what_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_calls = 0
    plain, compiled = make_llm("set_block"), make_llm("set_block")
    compiled.load_state_dict(plain.state_dict())
    whole = DecoderLayer.__call__

    def count(layer: DecoderLayer, *arguments: object) -> object:
        nonlocal compiled_calls
        compiled_calls += layer._compiled_call_impl is not None
        return whole(layer, *arguments)

    monkeypatch.setattr(DecoderLayer, "__call__", count)
    torch._dynamo.reset()
    fit(plain, 2)
    assert compiled_calls == 0
    fit(compiled, 2, callbacks=[CompiledTalkers(backend="aot_eager")])
    assert compiled_calls > 0
    assert all(layer._compiled_call_impl is None for layer in layers_of(compiled)), "they decode as they are"
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    llm = make_llm("ntp")
    CompiledTalkers().on_fit_start(None, llm)  # type: ignore[arg-type]
    assert len(caplog.records) == 1 and "no C++ compiler (no-such-compiler)" in caplog.text
    assert all(layer._compiled_call_impl is None for layer in layers_of(llm))


def test_talkers_of_other_layers_are_refused() -> None:
    llm = make_llm("ntp")
    llm.talkers = torch.nn.ModuleDict()
    with pytest.raises(UserError, match="leave the callback out"):
        CompiledTalkers("eager").on_fit_start(None, llm)  # type: ignore[arg-type]
