"""Two processes that split a thinker do what one does that holds it whole."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from callbacks.runtime.last_checkpoint import LastCheckpoint
from callbacks.runtime.signals import Interrupted
from callbacks.self_distillation_rounds import SelfDistillationRounds
from datamodules.batch import SpokenBatch
from lightning_modules.sharding import sharded_files
from lightning_modules.sharding.shards import gather, release, shards_of, split
from lightning_modules.sharding.strategy import AnyCheckpointIO, FullyShardedStrategy
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.masked.masked_talker import MaskedTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.test_speech_llm import REPLIES, make_llm, make_thinker
from tests.lightning_modules.test_two_ranks import half_of, uneven_batch
from tests.two_ranks import make_trainer, on_two_ranks

NUM_STEPS = 10
LISTENS = ThinkerObjective(1.0, 0.3, 0.5)


def answers(thinker: Thinker) -> dict[str, Any]:
    """Call all that a thinker can be asked for."""
    generator = torch.Generator().manual_seed(3)
    query, lengths = 0.1 * torch.randn(3, 8000, generator=generator), torch.tensor([8000, 6000, 7000])
    language_model = thinker.language_model
    output = thinker(query, lengths, REPLIES, ["a", "b", "a"])
    read = thinker.read(REPLIES, REPLIES)
    prompt = thinker.encode(query[0])
    tokens = list(thinker.stream(prompt, 4))
    return {
        "forward": (output.loss, output.transcript_loss, output.hidden, output.is_exact),
        "states": thinker.states(query, lengths, REPLIES).hidden,
        "read": (read.loss, read.embedding),
        "listen": thinker.listen(query, lengths, ["a", "b", "a"]),
        "embed": language_model.embed(torch.tensor([[1, 2], [3, 4]])),
        "logits": language_model.logits(read.hidden),
        "score": language_model.score(read.hidden[0], read.token_ids[0]),
        "transcribe": [list(text.encode()) for text in thinker.transcribe(query, lengths)],
        "encode": prompt.embeddings,
        "stream": [(token.token_id, token.hidden) for token in tokens],
    }


def ask_a_split_thinker(rank: int) -> tuple[dict[str, Any], dict[str, Any], list[int], list[str]]:
    distributed.init_process_group("gloo")
    thinker = make_thinker().eval()
    if rank == 1:  # the first one's weights are everybody's
        with torch.no_grad():
            thinker.adaptor.up.weight.add_(1.0)
    shards = shards_of(thinker)
    split(shards, init_device_mesh("cpu", (2,)), None)
    whole = [name for name, parameter in thinker.named_parameters() if not isinstance(parameter, DTensor)]
    together = answers(thinker)
    gather(shards)
    query = torch.linspace(-0.1, 0.1, 4000)
    lengths = [len(list(thinker.stream(thinker.encode(query), 3 + 4 * rank)))]  # more passes than the other one
    release(shards)
    return together, answers(thinker), lengths, whole


def test_each_entry_point_of_a_split_thinker_gives_what_a_whole_one_does() -> None:
    expected = answers(make_thinker().eval())
    for rank, (together, again, lengths, whole) in enumerate(on_two_ranks(ask_a_split_thinker)):
        assert whole == [] and lengths == [3 + 4 * rank]
        for name, value in expected.items():
            torch.testing.assert_close(together[name], value, msg=lambda text, name=name: f"{name}: {text}")
            torch.testing.assert_close(again[name], value, msg=lambda text, name=name: f"{name}: {text}")


class Plain(SpeechLLM):
    """Trained by SGD, in whose steps a wrong gradient shows."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.05)


class Record(L.Callback):
    """Keeps the loss of each step and the gradients of the first one, as the optimizer saw them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        loss = trainer.strategy.reduce(outputs["loss"].clone(), reduce_op="mean")
        self.losses.append(float(loss))
        if trainer.global_step == 1:
            named = {name: one.grad for name, one in pl_module.named_parameters() if one.grad is not None}
            self.gradients = {name: whole(gradient) for name, gradient in named.items()}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def whole_weights(llm: SpeechLLM) -> dict[str, Tensor]:
    return {key: whole(value) for key, value in llm.state_dict().items()}


class Stop(L.Callback):
    """Interrupts a training behind a step, as a signal would."""

    def __init__(self, checkpoint: LastCheckpoint, step: int) -> None:
        self.checkpoint, self.step = checkpoint, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.checkpoint.stop_after_saving(Interrupted(15, "stopped"))


class From(IterableDataset):
    """Half batches, or whole ones, from a step on; Lightning does not skip what came before."""

    def __init__(self, first: int, rank: int | None) -> None:
        self.first, self.rank = first, rank

    def __iter__(self) -> Iterator[SpokenBatch]:
        for seed in range(self.first, NUM_STEPS):
            yield uneven_batch(seed) if self.rank is None else half_of(uneven_batch(seed), self.rank)


@dataclass
class Trained:
    """What came out of a training."""

    losses: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    teachers: dict[str, Tensor]


def train(
    kind: type[SpeechLLM],
    objective: ThinkerObjective | None,
    strategy: Callable[[], Any] | None = None,
    folder: Path | None = None,
    first: int = 0,
    last: int = NUM_STEPS,
) -> Trained:
    """Train both talkers, and the thinker if it has an objective, by steps from `first` to `last`.

    With a folder, the first step resumes from its checkpoint of that step, and the last one leaves one there.
    """
    llm = make_llm("ntp", "mdm", kind=kind, thinker_objective=objective, gradient_clip_norm=1e9, warmup_steps=0)
    mdm = llm.talkers["mdm"]
    assert isinstance(mdm, MaskedTalker)
    mdm.masking = mdm.evaluation_masking = BlockBernoulli(1.0, 1.0)  # no draw differs between devices
    rounds = SelfDistillationRounds(["mdm"], [{"max_steps": 4, "num_steps": 2}, {"alpha": 0.5, "num_steps": 2}])
    record, saved = Record(), []
    if folder is not None:
        checkpoint = LastCheckpoint(folder / f"{last}.ckpt")
        saved = [Stop(checkpoint, last), checkpoint]
    trainer = make_trainer(
        1 if strategy is None else 2,
        max_steps=NUM_STEPS,
        limit_val_batches=0,
        callbacks=[rounds, record, *saved],
        enable_checkpointing=bool(saved),
        **({} if strategy is None else {"strategy": strategy()}),
    )
    trainer.strategy.checkpoint_io = AnyCheckpointIO()
    loader = DataLoader(From(first, None if strategy is None else trainer.global_rank), batch_size=None)
    with contextlib.suppress(Interrupted):
        trainer.fit(llm, loader, ckpt_path=folder / f"{first}.ckpt" if folder and first else None, weights_only=True)
    assert trainer.global_step == last
    (teacher,) = rounds.teachers.values()
    return Trained(record.losses, record.gradients, whole_weights(llm), dict(teacher.state_dict()))


PLACES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "fsdp2": FullyShardedStrategy,
    "fsdp2_gathered": lambda: FullyShardedStrategy(gathered_checkpoints=True),
}


def train_on_two(rank: int, folder: Path, name: str) -> list[list[Trained]]:
    """Train all parts by SGD and by AdamW, both resumed behind step 6, and talkers alone; resume what one saved."""
    place = PLACES[name]
    return [
        [train(Plain, LISTENS, place, folder / "sgd", 0, 6), train(Plain, LISTENS, place, folder / "sgd", 6)],
        [
            train(SpeechLLM, LISTENS, place, folder / "adamw", 0, 6),
            train(SpeechLLM, LISTENS, place, folder / "adamw", 6),
        ],
        [train(Plain, None, place)],
        [train(SpeechLLM, LISTENS, place, folder / "alone", 6)],
    ]


@pytest.fixture(scope="module")
def expected() -> list[Trained]:
    """What one process comes to on whole batches, never stopped."""
    return [train(Plain, LISTENS), train(SpeechLLM, LISTENS), train(Plain, None)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:The replies", "ignore:.*transcripts have", "ignore:.*num_workers")
@pytest.mark.parametrize("name", PLACES)
def test_two_ranks_on_half_batches_train_as_one_does_on_whole_ones(
    tmp_path: Path, expected: list[Trained], name: str
) -> None:
    """A teacher is promoted at step 4; checkpoints of step 6 are resumed on two ranks, and on one, by new objects."""
    before = train(SpeechLLM, LISTENS, None, tmp_path / "alone", 0, 6)
    of_ranks = on_two_ranks(train_on_two, tmp_path, name)
    assert sharded_files.is_sharded(tmp_path / "adamw" / "6.ckpt") == (name == "fsdp2")
    after = train(SpeechLLM, LISTENS, None, tmp_path / "adamw", 6)
    sgd, adamw, talkers = expected
    assert before.losses + after.losses == pytest.approx(adamw.losses, rel=1e-4)
    for by_sgd, by_adamw, of_talkers, continued in of_ranks:
        compare(by_sgd, sgd)
        compare(of_talkers, talkers)
        assert by_adamw[0].losses + by_adamw[1].losses == pytest.approx(adamw.losses, rel=1e-4)
        assert before.losses + continued[0].losses == pytest.approx(adamw.losses, rel=1e-4)
    for first, second in zip(*of_ranks, strict=True):
        for values, others in ((first[-1].teachers, second[-1].teachers), (first[-1].weights, second[-1].weights)):
            assert all(torch.equal(value, others[key]) for key, value in values.items())


def compare(found: list[Trained], expected: Trained) -> None:
    assert found[0].gradients.keys() == expected.gradients.keys()
    for name, value in expected.gradients.items():
        assert (found[0].gradients[name] - value).norm() <= 1e-5 * value.norm(), name
    for own, others in ((found[-1].weights, expected.weights), (found[-1].teachers, expected.teachers)):
        assert own.keys() == others.keys()
        for name, value in others.items():
            torch.testing.assert_close(own[name], value, rtol=0, atol=1e-4, msg=f"{name} differs")
    students = {name: expected.weights[f"talkers.mdm.{name}"] for name in expected.teachers}
    assert any(not torch.equal(value, students[name]) for name, value in expected.teachers.items())
    assert len(set(expected.losses)) == NUM_STEPS
    assert [loss for one in found for loss in one.losses] == pytest.approx(expected.losses, rel=1e-4)
