"""The speech LLM: talkers side by side do not touch each other, and the whole system speaks."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.inference.responder import Responder
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.vocoder.base import Vocoder, VocoderStream
from tests.lightning_modules.talker.conftest import NUM_CODES, build_talker
from tests.lightning_modules.thinker.tiny import make_language_model, make_speech_encoder, make_tokenizer

REPLIES = ["Yes.", "I will.", "Paris"]


class ToneVocoder(Vocoder):
    """A token is a constant of its own height: what was spoken can be read off the samples."""

    sample_rate, samples_per_token = 16_000, 640

    def stream(self) -> VocoderStream:
        return ToneStream()


class ToneStream(VocoderStream):
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        return (tokens.float() / NUM_CODES).repeat_interleave(640)


def make_thinker() -> Thinker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), make_tokenizer())


def make_llm(*kinds: str, kind: type[SpeechLLM] = SpeechLLM, **settings: object) -> SpeechLLM:
    thinker = make_thinker()
    talkers: dict[str, Talker] = {
        kind: build_talker(kind, thinker.hidden_size, thinker.embedding_size) for kind in kinds
    }
    settings = {"learning_rate": 1e-3, "warmup_steps": 2, "log_every_n_steps": 1, **settings}
    return kind(thinker, talkers, vocoder=ToneVocoder(), max_text_tokens=8, max_speech_s=2.0, **settings)  # type: ignore[arg-type]


def make_batch(seed: int) -> SpokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return SpokenBatch(
        ids=["a", "b", "c"],
        reply_texts=REPLIES,
        query=0.1 * torch.randn(3, 8000, generator=generator),
        query_lengths=torch.tensor([8000, 6000, 7000]),
        units=torch.randint(0, NUM_CODES, (3, 40), generator=generator),
        unit_lengths=torch.tensor([40, 33, 32]),
    )


def fit(llm: SpeechLLM, num_steps: int = 3, ckpt_path: Path | None = None, **trainer_settings: object) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"logger": False, **trainer_settings},  # type: ignore[arg-type]
    )
    batches = DataLoader([make_batch(seed) for seed in range(num_steps)], batch_size=None)
    validation = DataLoader([make_batch(99)], batch_size=None)
    trainer.fit(llm, batches, validation, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def weights_of(llm: SpeechLLM, name: str) -> dict[str, Tensor]:
    return llm.talkers[name].state_dict()


def test_a_talker_trains_to_the_same_weights_alone_and_in_company() -> None:
    together = make_llm("ntp", "mdm")
    fit(together)
    for name in ("ntp", "mdm"):
        alone = make_llm(name)
        untrained = {key: value.clone() for key, value in weights_of(alone, name).items()}
        fit(alone)
        for key, value in weights_of(alone, name).items():
            assert torch.equal(value, weights_of(together, name)[key]), key
        assert any(not torch.equal(value, untrained[key]) for key, value in weights_of(alone, name).items())


def test_talkers_leave_the_frozen_thinker_as_it_is() -> None:
    llm = make_llm("ntp")
    before = {key: value.clone() for key, value in llm.thinker.state_dict().items()}
    fit(llm)
    assert all(torch.equal(value, before[key]) for key, value in llm.thinker.state_dict().items())
    assert not llm.thinker.training


def test_training_the_thinker_changes_it_and_needs_no_talker() -> None:
    llm = make_llm(thinker_objective=ThinkerObjective())
    before = {key: value.clone() for key, value in llm.thinker.named_parameters()}
    fit(llm)
    assert all(
        not torch.equal(value, before[key]) for key, value in llm.thinker.adaptor.named_parameters(prefix="adaptor")
    )


def test_each_talker_has_its_own_run_with_the_same_tags(tmp_path) -> None:  # type: ignore[no-untyped-def]
    llm = make_llm("ntp", "mdm")
    fit(llm, logger=[TensorBoardLogger(tmp_path, name, "") for name in llm.run_names])
    tags = {}
    for name in ("ntp", "mdm"):
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        tags[name] = {tag for tag in events.Tags()["scalars"] if tag != "epoch"}
    assert tags["ntp"] == tags["mdm"]
    assert {"train/loss", "train/nll", "train/accuracy", "train/grad_norm", "val/nll", "val/accuracy"} <= tags["ntp"]


def test_gradients_are_clipped_talker_by_talker() -> None:
    llm = make_llm("ntp", "mdm", gradient_clip_norm=1e-3)

    norms: dict[str, float] = {}

    class ReadNorms(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:  # type: ignore[no-untyped-def]
            for name, talker in llm.talkers.items():
                grads = [p.grad.norm() for p in talker.parameters() if p.grad is not None]
                if grads:
                    norms[name] = float(torch.stack(grads).norm())

    fit(llm, callbacks=[ReadNorms()])
    assert norms.keys() == {"ntp", "mdm"}
    for norm in norms.values():
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_trained_talkers_may_keep_their_weights() -> None:
    trained = make_llm("ntp").talkers["ntp"]
    with torch.no_grad():
        trained.head.weight.fill_(0.5)
    for draws, expected in ((False, True), (True, False)):
        kept = SpeechLLM(make_thinker(), {"one": copy.deepcopy(trained)}, draw_weights=draws).talkers["one"]
        assert bool((kept.head.weight == 0.5).all()) is expected


def test_a_test_answers_with_every_decoding_by_its_name() -> None:
    decodings = {"mdm_4": Decoding("mdm", 4), "ntp": Decoding("ntp"), "mdm_1": Decoding("mdm", 1), "left_out": None}
    llm = make_llm("ntp", "mdm", decodings=decodings).eval()
    assert {name: one.num_steps for name, one in llm.decodings.items()} == {"mdm_4": 4, "ntp": 8, "mdm_1": 1}
    answers = llm.test_step(make_batch(0), 0)
    assert len(answers) == 3
    assert all(list(answer) == ["mdm_4", "ntp", "mdm_1"] for answer in answers)
    alone = make_llm("ntp", "mdm", decodings={"mdm_4": Decoding("mdm", 4)}).eval().test_step(make_batch(0), 0)
    for several, one in zip(answers, alone, strict=True):
        assert torch.equal(several["mdm_4"].speech_tokens, one["mdm_4"].speech_tokens), (
            "others beside it change nothing"
        )


def test_one_talker_under_two_rules_in_one_test() -> None:
    """Nothing of a decoding is kept in the talker."""
    rules = {"plain": Decoding("set_block", 8), "refined": Decoding("set_block", 8, refinement=Refinement(1))}
    answers = [
        make_llm("set_block", decodings=dict(order)).eval().test_step(make_batch(0), 0)
        for order in (rules.items(), reversed(rules.items()))
    ]
    for first, second in zip(*answers, strict=True):
        for name in rules:
            assert torch.equal(first[name].speech_tokens, second[name].speech_tokens)
    assert any(not torch.equal(answer["plain"].order, answer["refined"].order) for answer in answers[0])


def test_the_warm_up_runs_in_the_precision_of_the_test() -> None:
    """Once, within the first test step: outside of it autocast is off."""
    llm = make_llm("ntp", decodings={"ntp": Decoding("ntp")})
    seen: list[bool] = []
    answer = Responder.answer

    def spy(*arguments: Any) -> SpokenReply:
        seen.append(torch.is_autocast_enabled("cpu"))
        return answer(*arguments)

    trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_progress_bar=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Responder, "answer", spy)
        trainer.test(llm, DataLoader([make_batch(0), make_batch(1)], batch_size=None), verbose=False)
    assert seen == [True] * 7, "once to warm up, then three queries of two batches each"


def test_a_test_without_decodings_or_vocoder_is_refused() -> None:
    with pytest.raises(UserError, match="name some in module.init_args.decodings"):
        make_llm("ntp").eval().test_step(make_batch(0), 0)
    with pytest.raises(UserError, match="has no vocoder"):
        SpeechLLM(make_thinker(), {"ntp": build_talker("ntp", 32, 32)}, decodings={"ntp": Decoding("ntp")})


def test_text_beyond_the_anchors_is_reported_by_id() -> None:
    llm = make_llm("ntp").eval()
    batch = make_batch(0)
    batch.reply_texts = ["Yes", "Yes", "The capital of France is not what it was, and I will not wake you at seven."]
    with pytest.warns(UserWarning, match=r"\['c'\] have more text"):
        llm.validation_step(batch, 0)
    assert llm.text_overflow.ids == {"c"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=L.fabric.utilities.warnings.PossibleUserWarning)
        yield


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Nothing to train"),
        ({"talker_learning_rates": {"mtp": 1e-3}, "thinker_objective": ThinkerObjective()}, r"name \['mtp'\]"),
        ({"decodings": {"a": Decoding("mtp")}, "thinker_objective": ThinkerObjective()}, "no talker 'mtp' to decode"),
        ({"learning_rate": -1.0, "thinker_objective": ThinkerObjective()}, "learning_rate is -1.0"),
        ({"seed": -1, "thinker_objective": ThinkerObjective()}, "seed is -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_llm(**settings)


def test_settings_may_name_a_talker_that_is_left_out() -> None:
    talkers = {"ntp": build_talker("ntp", 32, 32), "mdm": None}
    assert list(SpeechLLM(make_thinker(), talkers, talker_learning_rates={"mdm": 1e-3}).talkers) == ["ntp"]


def test_validation_does_not_depend_on_batching() -> None:
    """`val/nll` weighs scored tokens, and an example's masks are its own."""
    batch = make_batch(0)
    batch.unit_lengths = torch.tensor([40, 9, 24])
    found = []
    for rows in ([[0, 1, 2]], [[2], [1, 0]]):
        llm = make_llm("ntp", "mtp", "mdm", "set_block")
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        loader = DataLoader([rows_of(batch, one) for one in rows], batch_size=None)
        trainer.validate(llm, loader, verbose=False)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert found[0].keys() == found[1].keys() >= {"ntp/val/nll", "set_block/val/accuracy"}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def rows_of(batch: SpokenBatch, rows: list[int]) -> SpokenBatch:
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    texts = {"ids": [batch.ids[row] for row in rows], "reply_texts": [batch.reply_texts[row] for row in rows]}
    return replace(batch, **tensors, **texts)


def test_a_checkpoint_holds_what_trains_and_refuses_another_module(tmp_path: Path) -> None:
    llm = make_llm("ntp", "mdm")
    fit(llm, 2).save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"talkers"}
    assert {key.split(".")[0] for key in saved["left_out"]} == {"thinker"}
    assert saved["state_dict"].keys() | set(saved["left_out"]) == llm.state_dict().keys()
    fit(make_llm("ntp", "mdm"), 3, ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="does not fit this module: .* are missing"):
        fit(make_llm("ntp", "mdm", "mtp"), 3, ckpt_path=tmp_path / "last.ckpt")


def test_talkers_may_start_from_a_trained_one() -> None:
    trained = build_talker("ntp", 32, 32)
    trained.reset_parameters(torch.Generator().manual_seed(77))
    llm = make_llm("ntp", "mdm", initial_talker=trained)
    for name in ("ntp", "mdm"):
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in weights_of(llm, name).items())
    with pytest.raises(ValueError, match="initial talker has no anchors"):
        make_llm("ntp", initial_talker=build_talker("ntp", 16, 32))


@pytest.mark.parametrize(
    ("objective", "untouched"),
    [
        (ThinkerObjective(reply=0.0, transcript=1.0), "language_model.model.model.layers.0.mlp.up_proj.weight"),
        (ThinkerObjective(reply=0.0, text=1.0), "adaptor.up.weight"),
    ],
)
def test_a_part_of_weight_zero_trains_nothing(objective: ThinkerObjective, untouched: str) -> None:
    llm = make_llm(thinker_objective=objective, weight_decay=0.0)
    before = {key: value.clone() for key, value in llm.thinker.named_parameters()}
    batch = make_batch(0)
    batch.transcripts = ["a", "b", "a"]  # few enough tokens for half a second of audio
    terms, scalars, _ = objective(llm.thinker, batch)
    scalars["train/loss"].backward()
    assert [int(term.count) for term in terms] == [3 if objective.transcript else int(sum(num_tokens(llm, batch)))]
    assert before.keys() > {untouched}
    touched = {key for key, value in llm.thinker.named_parameters() if value.grad is not None and value.grad.any()}
    assert touched and untouched not in touched


def test_an_objective_without_its_transcripts_or_weights_is_refused() -> None:
    llm = make_llm(thinker_objective=ThinkerObjective(text=1.0))
    with pytest.raises(ValueError, match="add transcript"):
        llm.training_step(make_batch(0), 0)
    with pytest.raises(ValueError, match="must be positive"):
        ThinkerObjective(reply=0.0)


def num_tokens(llm: SpeechLLM, batch: SpokenBatch) -> list[int]:
    """Tokens of each reply, its end of turn included."""
    return [len(ids) + 1 for ids in llm.thinker.prompt.encode_replies(batch.reply_texts)]


def with_states_of(llm: SpeechLLM, batch: SpokenBatch) -> SpokenBatch:
    assert batch.query is not None and batch.query_lengths is not None
    with torch.no_grad():
        output = llm.thinker(batch.query, batch.query_lengths, batch.reply_texts)
    states = {"text_ids": output.token_ids, "text_hidden": output.hidden.bfloat16(), "text_lengths": output.lengths}
    return replace(batch, query=None, query_lengths=None, **states)


def generators(llm: SpeechLLM) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(0) for name in llm.talkers}


def test_text_states_from_a_job_train_a_talker_as_the_thinker_does() -> None:
    llm = make_llm("ntp", "mdm")
    batch = make_batch(0)
    read, direct = llm.read_text(with_states_of(llm, batch)), llm.read_text(batch)
    assert torch.equal(read.embedding, direct.embedding) and torch.equal(read.lengths, direct.lengths)
    assert torch.equal(read.hidden.float(), direct.hidden.bfloat16().float())
    by_thinker = llm._talk(batch, generators(llm))
    by_states = llm._talk(with_states_of(llm, batch), generators(llm))
    for name, output in by_thinker.items():
        assert 0 < abs(float(output.loss.detach() / by_states[name].loss.detach()) - 1) < 1e-3, name


def test_text_states_of_another_width_or_none_at_all_are_refused() -> None:
    llm = make_llm("ntp")
    batch = with_states_of(llm, make_batch(0))
    assert batch.text_hidden is not None
    with pytest.raises(ValueError, match="text states are 31 wide"):
        llm._talk(replace(batch, text_hidden=batch.text_hidden[..., 1:]), generators(llm))
    with pytest.raises(ValueError, match="add query or text_states"):
        llm._talk(replace(batch, text_hidden=None), generators(llm))


@pytest.mark.parametrize(
    ("kinds", "settings", "fields", "message"),
    [
        (("ntp",), {}, {"train": ["text_states"]}, "add 'units'"),
        (("ntp",), {}, {"train": ["units"]}, "add 'text_states'"),
        (
            ("ntp",),
            {},
            {"train": ["units", "query"], "test": ["units", "text_states"]},
            "test batches lack; add 'query'",
        ),
        ((), {"thinker_objective": ThinkerObjective()}, {"train": ["transcript"]}, "add 'query'"),
        ((), {"thinker_objective": ThinkerObjective(text=1.0)}, {"train": ["query"]}, "add 'transcript'"),
    ],
)
def test_data_that_lacks_a_field_is_refused_up_front(
    kinds: tuple[str, ...], settings: dict, fields: dict[str, list[str]], message: str
) -> None:
    llm = make_llm(*kinds, **settings)
    llm.check_data({split: ["query", "units", "transcript", "text_states"] for split in fields})
    with pytest.raises(UserError, match=message):
        llm.check_data(fields)
