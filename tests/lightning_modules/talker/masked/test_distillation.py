"""Self-distillation against plain loops, and what must hold of any trajectory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.talker.masked.distillation import (
    SelfDistillation,
    draw_own_steps,
    entropy_where_right,
    reverse_kl,
    self_distillation_terms,
    unmasking_trajectory,
)
from lightning_modules.talker.masked_diffusion import MaskedDiffusionTalker
from lightning_modules.talker.masking.schemes import BlockBernoulli
from lightning_modules.talker.set_block import SetBlockTalker
from tests.lightning_modules.talker.conftest import make_talker, make_text, next_token_logits

VOCABULARY, MASK = 7, 9


class TableTeacher:
    """A network that is a table: its logits depend on the place, the row and how much of the row is filled."""

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(4, 64, 65, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.calls = 0

    def all_logits(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        num_filled = (tokens != MASK).sum(dim=1)
        rows, length = tokens.shape
        return torch.stack([self.table[row, :length, num_filled[row]] for row in range(rows)])

    def __call__(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        return self.all_logits(tokens).flatten(0, 1)[wanted]


def count_masked(is_masked: Tensor, block_size: int) -> Tensor:
    return is_masked.unflatten(1, (-1, block_size)).sum(dim=-1)


def trajectory_by_loops(
    teacher: TableTeacher, x_t: Tensor, is_masked: Tensor, block_size: int, num_steps: int
) -> tuple[dict[tuple[int, int], Tensor], Tensor, Tensor]:
    """Position by position, as one would explain it."""
    tokens, when = x_t.clone(), torch.full_like(x_t, -1)
    kept: dict[tuple[int, int], Tensor] = {}
    for step in range(num_steps):
        if not (tokens == MASK).any():
            break
        logits = teacher.all_logits(tokens)
        filled = tokens.clone()
        for row in range(x_t.shape[0]):
            for start in range(0, x_t.shape[1], block_size):
                left = [place for place in range(start, start + block_size) if tokens[row, place] == MASK]
                count = math.ceil(len(left) / (num_steps - step))
                sure = {place: float(logits[row, place].float().softmax(-1).max()) for place in left}
                for place in sorted(left, key=lambda place: (-sure[place], place))[:count]:
                    filled[row, place] = logits[row, place].argmax()
                    kept[row, place] = logits[row, place]
                    when[row, place] = step
        tokens = filled
    return kept, tokens, when


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    num_blocks=st.integers(1, 4),
    block_size=st.sampled_from([1, 3, 4, 8]),
    num_steps=st.integers(1, 9),
)
def test_the_trajectory_is_that_of_plain_loops(
    seed: int, rows: int, num_blocks: int, block_size: int, num_steps: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    length = num_blocks * block_size
    is_masked = torch.rand(rows, length, generator=generator) < torch.rand(rows, 1, generator=generator)
    x_t = torch.randint(0, VOCABULARY, (rows, length), generator=generator).masked_fill(is_masked, MASK)
    num_masked = count_masked(is_masked, block_size)
    trajectory = unmasking_trajectory(TableTeacher(seed), x_t, is_masked, num_masked, num_steps)
    kept, tokens, when = trajectory_by_loops(TableTeacher(seed), x_t, is_masked, block_size, num_steps)
    assert torch.equal(trajectory.tokens, tokens)
    assert torch.equal(trajectory.step, when)
    for logits, (row, place) in zip(trajectory.logits, is_masked.nonzero().tolist(), strict=True):
        assert torch.equal(logits, kept[row, place])
    assert not (trajectory.tokens == MASK).any(), "nothing stays masked"
    assert torch.equal(trajectory.tokens[~is_masked], x_t[~is_masked]), "what was clean stays as it was"
    for row in range(rows):
        for block, masked in zip(trajectory.step[row].split(block_size), is_masked[row].split(block_size), strict=True):
            left = int(masked.sum())
            for step in range(num_steps):
                count = math.ceil(left / (num_steps - step))
                assert int((block == step).sum()) == count
                left -= count


def test_a_trajectory_cut_short_is_the_beginning_of_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    is_masked = torch.rand(3, 16, generator=generator) < 0.8
    x_t = torch.randint(0, VOCABULARY, (3, 16), generator=generator).masked_fill(is_masked, MASK)
    num_masked = count_masked(is_masked, 8)
    whole = unmasking_trajectory(TableTeacher(0), x_t, is_masked, num_masked, 4)
    start = unmasking_trajectory(TableTeacher(0), x_t, is_masked, num_masked, 4, stop_after=2)
    is_early = whole.step < 2
    assert torch.equal(start.step, torch.where(is_early, whole.step, -1))
    assert torch.equal(start.tokens, torch.where(is_early, whole.tokens, MASK))


@settings(max_examples=30, deadline=None)
@given(share=st.sampled_from([0.0, 0.3, 1.0]), num_steps=st.integers(2, 6), seed=st.integers(0, 100))
def test_the_student_takes_some_but_never_all_steps_in_its_share_of_blocks(
    share: float, num_steps: int, seed: int
) -> None:
    how = SelfDistillation(num_steps=num_steps, on_policy_share=share)
    own_steps = draw_own_steps(50, 40, how, torch.Generator().manual_seed(seed))
    assert float((own_steps > 0).float().mean()) == pytest.approx(share, abs=0.06)
    assert 0 <= own_steps.min() and own_steps.max() < num_steps
    if share == 1.0:
        assert set(own_steps.unique().tolist()) == set(range(1, num_steps)), "each number of steps occurs"


def test_entropy_counts_where_the_student_is_right_only() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 5.0]])
    expected = [float(-(row.softmax(0) * row.log_softmax(0)).sum()) for row in logits]
    entropy, num_right = entropy_where_right(logits, torch.tensor([0, 1, 0]))
    assert float(entropy) == pytest.approx(sum(expected[:2]) / 2) and int(num_right) == 2
    entropy, num_right = entropy_where_right(logits, torch.tensor([1, 2, 0]))
    assert float(entropy) == 0.0 and int(num_right) == 0


def test_reverse_kl_is_that_of_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, VOCABULARY, generator=generator)
    divergence = reverse_kl(student, teacher, 2.0)
    for row in range(5):
        p = [math.exp(float(x) / 2) for x in student[row]]
        q = [math.exp(float(x) / 2) for x in teacher[row]]
        expected = sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        assert float(divergence[row]) == pytest.approx(expected, abs=1e-5)
    assert reverse_kl(student, student, 3.0).abs().max() < 1e-6
    assert (divergence > 0).all()


def test_the_loss_weighs_teacher_and_clean_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, VOCABULARY, generator=generator)
    targets = torch.arange(5)
    (mixed,), cross_entropy = self_distillation_terms(
        student, teacher, targets, SelfDistillation(alpha=0.7, temperature=2.0)
    )
    divergence = float(reverse_kl(student, teacher, 2.0).mean())
    assert float(mixed.mean) == pytest.approx(0.7 * 4 * divergence + 0.3 * float(cross_entropy), rel=1e-6)
    assert int(mixed.count) == 5 and mixed.weight == 1.0
    (_, surer), _ = self_distillation_terms(
        student, teacher, targets, SelfDistillation(alpha=0.7, temperature=2.0, certainty_weight=0.5)
    )
    entropy, num_right = entropy_where_right(student, targets)
    assert surer.weight == 0.5 and torch.equal(surer.mean, entropy) and torch.equal(surer.count, num_right)
    (plain,), _ = self_distillation_terms(student, teacher, targets, SelfDistillation(alpha=0.0))
    assert torch.equal(plain.mean, torch.nn.functional.cross_entropy(student, targets)), "to the last bit"
    (nothing,), _ = self_distillation_terms(student[:0], teacher[:0], targets[:0], SelfDistillation())
    assert float(nothing.mean) == 0.0 and int(nothing.count) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -0.1},
        {"alpha": 1.5},
        {"temperature": 0.0},
        {"num_steps": 0},
        {"on_policy_share": 1.1},
        {"on_policy_share": 0.5, "num_steps": 1},
        {"certainty_weight": -1.0},
    ],
    ids=lambda wrong: str(wrong),
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name} is"):
        SelfDistillation(**wrong)


@pytest.mark.parametrize("kind", ["mdm", "set_block", "coupled"])
@pytest.mark.parametrize("clean_context", [True, False])
def test_a_student_learns_from_its_teacher_and_the_teacher_from_nobody(kind: str, clean_context: bool) -> None:
    student, teacher = make_talker(kind), make_talker(kind)
    for talker in (student, teacher):
        assert isinstance(talker, MaskedDiffusionTalker | SetBlockTalker)
        if isinstance(talker, MaskedDiffusionTalker):
            talker.clean_context = clean_context
    with torch.no_grad():
        teacher.head.weight.mul_(1.5)
    units = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(1))
    batch = student.corrupt(make_text([5, 2, 9]), units, torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0))
    output = student.distil(teacher, batch, SelfDistillation(alpha=1.0, num_steps=2))
    output.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.head.weight.grad is not None and student.head.weight.grad.abs().max() > 0
    plain = student.score(batch)
    without = student.distil(teacher, batch, SelfDistillation(alpha=0.0))
    assert torch.equal(without.loss, plain.loss), "alpha = 0 is the plain masked loss to the last bit"
    assert torch.equal(without.nll, plain.nll) and torch.equal(without.accuracy, plain.accuracy)


@pytest.mark.parametrize("kind", ["mdm", "set_block", "set_block_coupled"])
def test_after_steps_of_its_own_a_student_reads_what_it_said(kind: str) -> None:
    """Its first steps are those of its own trajectory; what is left to predict is masked, the clean targets stay."""
    student = make_talker(kind)
    assert isinstance(student, MaskedDiffusionTalker | SetBlockTalker)
    units = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(1))
    batch = student.corrupt(make_text([5, 2, 9]), units, torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0))
    how = SelfDistillation(num_steps=4, on_policy_share=0.6)
    later = student.take_own_steps(batch, how, torch.Generator().manual_seed(3))
    num_rows, length = batch.is_masked.shape
    own_steps = draw_own_steps(num_rows, length // student.block_size, how, torch.Generator().manual_seed(3))
    whole = student.unmask(batch, 4)
    for row, place in batch.is_masked.nonzero().tolist():
        is_said = int(whole.step[row, place]) < int(own_steps[row, place // student.block_size])
        assert bool(later.is_masked[row, place]) is not is_said
        assert int(later.x_t[row, place]) == (int(whole.tokens[row, place]) if is_said else batch.mask_id)
    assert torch.equal(later.x_t[~batch.is_masked], batch.x_t[~batch.is_masked])
    assert torch.equal(later.targets, batch.targets)
    assert torch.equal(later.num_masked, count_masked(later.is_masked, student.block_size))
    assert 0 < int(later.is_masked.sum()) < int(batch.is_masked.sum())
    output = student.distil(make_talker(kind), batch, how, torch.Generator().manual_seed(3))
    assert int(output.num_scored_tokens) == int(later.is_masked.sum())


@pytest.mark.parametrize("kind", ["mdm", "set_block"])
@pytest.mark.parametrize("num_copies", [1, 2])
@pytest.mark.parametrize("clean_context", [True, False])
def test_what_no_filling_changes_is_read_once(kind: str, num_copies: int, clean_context: bool) -> None:
    talker = make_talker(kind)
    assert isinstance(talker, MaskedDiffusionTalker | SetBlockTalker)
    talker.num_noisy_copies = num_copies
    if isinstance(talker, MaskedDiffusionTalker):
        talker.clean_context = clean_context
    units = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(1))
    batch = talker.corrupt(make_text([5, 2, 9]), units, torch.tensor([20, 7, 16]), torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = talker.reader(batch)
        for filling in (batch.x_t, batch.targets, batch.x_t):
            torch.testing.assert_close(read(filling), talker.masked_hidden(batch, filling), rtol=1e-4, atol=1e-5)


def test_one_step_of_a_teacher_equal_to_the_student_gives_no_divergence() -> None:
    student, teacher = make_talker("set_block"), make_talker("set_block")
    assert isinstance(student, SetBlockTalker) and isinstance(teacher, SetBlockTalker)
    student.next_token_weight = 0.0
    units = torch.randint(0, 30, (2, 20), generator=torch.Generator().manual_seed(1))
    batch = student.corrupt(make_text([5, 2]), units, torch.tensor([20, 7]), torch.Generator().manual_seed(0))
    same = student.distil(teacher, batch, SelfDistillation(alpha=1.0, num_steps=1))
    assert float(same.loss.detach()) == pytest.approx(0.0, abs=1e-6)
    more = student.distil(teacher, batch, SelfDistillation(alpha=1.0, num_steps=4))
    assert float(more.loss.detach()) > 1e-4, "what the teacher has revealed changes what it says of the rest"


def test_with_blocks_of_one_and_all_masked_the_masked_loss_is_that_of_next_tokens() -> None:
    student = make_talker("set_block")
    assert isinstance(student, SetBlockTalker)
    student.block_size, student.anchors.anchors_per_block = 1, 1
    student.evaluation_masking = BlockBernoulli(1.0, 1.0)
    student.next_token_weight = 0.0
    text, lengths = make_text([6]), torch.tensor([9])
    units = torch.randint(0, 30, (1, 9), generator=torch.Generator().manual_seed(1))
    output = student(text, units, lengths, torch.Generator())
    speech = student.lay_out(units, lengths)
    logits = next_token_logits(student, text, speech.x_0)
    expected = torch.nn.functional.cross_entropy(logits[0], speech.x_0[0])
    torch.testing.assert_close(output.nll, expected.detach(), rtol=1e-5, atol=1e-6)
