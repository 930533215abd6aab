"""Adapters of a whole system: LoRA in a fit, folders per checkpoint, selection by name at decoding."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks.adapter_folders import AdapterFolders
from lightning_modules.adapters.adapter_set import AdapterFolder
from lightning_modules.adapters.lora import LoraSettings
from lightning_modules.errors import UserError
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.thinker.objective import ThinkerObjective
from tests.lightning_modules.test_speech_llm import fit, make_batch, make_llm

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The replies"),
]
LORA = {
    "thinker.language_model": LoraSettings(2),
    "thinker.adaptor": LoraSettings(2),
    "talkers.ntp": LoraSettings(2, targets=["query_key_value", "head"]),
}


def make_adapted(tmp_path: Path | None = None, num_steps: int = 3, **settings: object) -> SpeechLLM:
    llm = make_plain(thinker_objective=ThinkerObjective(), lora=LORA, learning_rate=0.05, **settings)
    if tmp_path is not None:
        trainer = fit(llm, num_steps, default_root_dir=tmp_path, callbacks=[AdapterFolders(num_kept=1)])
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    return llm


def make_plain(**settings: object) -> SpeechLLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)  # the same base each time
        return make_llm("ntp", draw_weights=False, **settings)


def answer(llm: SpeechLLM, adapter: str | None) -> tuple[str, Tensor]:
    decodings = {"it": Decoding("ntp", adapter=adapter)}
    query = make_batch(5).query
    assert query is not None
    reply = llm.eval().responder.compare(query[0], decodings)["it"]
    return reply.text, reply.speech_tokens


def test_only_the_named_parts_train_by_name_and_by_value() -> None:
    llm = make_adapted(num_steps=0)
    before = {name: parameter.clone() for name, parameter in llm.named_parameters()}
    trains = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].split(".")[0] for name in trains} == {"thinker", "talkers"}
    assert all(".lora_" in name for name in trains) and not any("speech_encoder" in name for name in trains)
    trainer = fit(llm, 3)
    changed = {name for name, parameter in llm.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trains
    state = trainer.optimizers[0].state
    assert {id(one) for one in state} == {id(parameter) for name, parameter in llm.named_parameters() if name in trains}


def test_one_adapter_may_lie_in_several_folders(tmp_path: Path) -> None:
    trained = make_adapted()
    folders = {"thinker": ("thinker.adaptor", "thinker.language_model"), "talkers": ("talkers.ntp",)}
    trained.save_adapter(tmp_path / "all")
    for name, parts in folders.items():
        (tmp_path / name).mkdir()
        for part in parts:
            (tmp_path / name / part).symlink_to(tmp_path / "all" / part)
    where = [str(tmp_path / name) for name in folders]
    loaded = make_plain(adapters={"mine": AdapterFolder(where)})
    assert loaded.adapters.parts_of("mine") == ["talkers.ntp", "thinker.adaptor", "thinker.language_model"]
    text, tokens = answer(loaded, "mine")
    expected_text, expected = answer(trained, "trained")
    assert text == expected_text
    torch.testing.assert_close(tokens, expected)
    with pytest.raises(UserError, match="both hold talkers.ntp"):
        make_plain(adapters={"mine": AdapterFolder([str(tmp_path / "talkers"), str(tmp_path / "all")])})
    with pytest.raises(FileNotFoundError, match="hold no thinker.adaptor; there are"):
        make_plain(adapters={"mine": AdapterFolder(str(tmp_path / "talkers"), ["thinker.adaptor"])})


def test_folders_are_written_beside_each_checkpoint_and_select_what_was_trained(tmp_path: Path) -> None:
    trained = make_adapted(tmp_path)
    folders = sorted(one.name for one in (tmp_path / "adapters").iterdir())
    assert folders == ["last", "step_000003"] and (tmp_path / "adapters" / "last").resolve().name == "step_000003"
    parts = sorted(one.name for one in (tmp_path / "adapters" / "last").iterdir())
    assert parts == ["talkers.ntp", "thinker.adaptor", "thinker.language_model"]
    base = answer(make_plain(), None)
    folder = str(tmp_path / "adapters" / "last")
    adapters = {"mine": AdapterFolder(folder), "talker": AdapterFolder(folder, ["talkers.ntp"])}
    loaded = make_plain(adapters=adapters)
    expected = answer(trained, "trained")
    assert expected != base
    for name, (text, tokens) in {"mine": expected, None: base}.items():  # also back to the base, bit by bit
        found = answer(loaded, name)
        assert found[0] == text and torch.equal(found[1], tokens)
    assert answer(loaded, "talker")[0] == base[0]  # the thinker is the base's
    assert not torch.equal(answer(loaded, "talker")[1], base[1])
    # one comparison of several adapters lets the thinker write once for each
    assert make_batch(5).query is not None
    decodings = {str(name): Decoding("ntp", adapter=name) for name in (None, "mine", "talker")}
    replies = loaded.responder.compare(make_batch(5).query[0], decodings, turn=1)
    assert torch.equal(replies["mine"].speech_tokens, expected[1]) and torch.equal(
        replies["None"].speech_tokens, base[1]
    )


def test_a_merged_adapter_speaks_as_the_selected_one(tmp_path: Path) -> None:
    make_adapted(tmp_path)
    llm = make_plain(adapters={"mine": AdapterFolder(str(tmp_path / "adapters" / "last"))}).double()
    expected = answer(llm, "mine")
    llm.adapters.merge("mine")
    assert not any("lora_" in name for name in llm.state_dict())
    found = answer(llm, None)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


def test_a_checkpoint_holds_the_matrices_alone_and_gives_them_back(tmp_path: Path) -> None:
    first, second = make_adapted(num_steps=0), make_adapted(num_steps=0)
    fit(first, 2).save_checkpoint(tmp_path / "two.ckpt")
    keys = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"]
    assert keys and all(".lora_" in key for key in keys)
    fit(second, 2, ckpt_path=tmp_path / "two.ckpt")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_lora_of_the_language_model_itself_belongs_to_the_base(tmp_path: Path) -> None:
    """An adapter that is not chosen must not switch off what stage 1 has trained."""
    llm = make_plain()
    llm.thinker.language_model.add_lora(rank=2)
    with torch.no_grad():
        for name, parameter in llm.thinker.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    text = llm.thinker.language_model(torch.ones(1, 3, 32))
    again = SpeechLLM(llm.thinker, dict(llm.talkers), vocoder=llm.vocoder, draw_weights=False)  # type: ignore[arg-type]
    assert torch.equal(again.thinker.language_model(torch.ones(1, 3, 32)), text)
    again.adapters.merge(None)
    torch.testing.assert_close(again.thinker.language_model(torch.ones(1, 3, 32)), text, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"talkers.mdm": LoraSettings()}}, r"ntp has a loss but nothing to train"),
        ({"lora": {"talkers.ntp": LoraSettings(), "talkers.x": LoraSettings()}}, r"nothing teaches \['x'\]"),
        (
            {"lora": {"talkers.ntp": LoraSettings(), "thinker.adaptor": LoraSettings()}},
            r"nothing teaches \['thinker'\]",
        ),
        (
            {
                "lora": {"talkers.ntp": LoraSettings(), "thinker.ears": LoraSettings()},
                "thinker_objective": ThinkerObjective(),
            },
            r"there is no part 'thinker.ears'; there are \['talkers.ntp', 'thinker.adaptor'",
        ),
        (
            {"lora": {"talkers.ntp": LoraSettings(targets=["q_proj"])}},
            r"lora.talkers.ntp: lora_targets: \['q_pro",
        ),
        ({"decodings": {"it": Decoding("ntp", adapter="x")}}, r"decodings.it: there is no adapter 'x'"),
        ({"adapters": {"a": AdapterFolder("/no/such")}}, "holds no PEFT folders"),
    ],
)
def test_mistakes_are_told(settings: dict, message: str) -> None:
    with pytest.raises((UserError, FileNotFoundError), match=message):
        make_llm("ntp", **settings)


def test_stored_states_are_refused_beside_a_thinker_that_changes() -> None:
    fields = {"train": ("query", "units", "text_states")}
    with pytest.raises(UserError, match="take 'text_states' out"):
        make_adapted(num_steps=0).check_data(fields)


def test_a_talker_reads_the_thinkers_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinker and talker learn from one pass per batch, and the talker's loss does not move the thinker."""
    llm = make_adapted(num_steps=0)
    calls = []
    forward = llm.thinker.forward
    monkeypatch.setattr(llm.thinker, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    monkeypatch.setattr(SpeechLLM, "log", lambda *a, **k: None)  # there is no trainer
    loss = llm.training_step(make_batch(0), 0)
    assert len(calls) == 1
    loss.backward()
    alone = make_llm(thinker_objective=ThinkerObjective(), lora={k: v for k, v in LORA.items() if "thinker" in k})
    alone.training_step(make_batch(0), 0).backward()
    grads = {name: one.grad for name, one in llm.thinker.named_parameters() if one.grad is not None}
    assert grads
    for name, parameter in alone.thinker.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad)


def test_a_trainer_without_lora_has_no_adapter_to_write(tmp_path: Path) -> None:
    llm = make_llm("ntp")
    with pytest.raises(UserError, match="there is no adapter 'trained'"):
        fit(llm, 1, default_root_dir=tmp_path, callbacks=[AdapterFolders()]).save_checkpoint(tmp_path / "a.ckpt")
    assert isinstance(llm, L.LightningModule)
