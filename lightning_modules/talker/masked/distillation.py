"""Iterative self-distillation: the targets that a teacher's trajectory gives, and the loss against them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive, require_within
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import most_confident, num_to_reveal
from lightning_modules.talker.losses import LossTerm, positions_of


@dataclass(frozen=True)
class Trajectory:
    """What a talker saw while it filled masks.

    Attributes:
        logits: Its logits at the moment each masked position was revealed, in row-major order of the masked positions,
            ``(n, V)``; 0 where none was.
        tokens: The filled sequence, ``(R, S) int64``.
        step: Step in which each position was revealed, from 0; -1 where none was, ``(R, S) int64``.
    """

    logits: Tensor
    tokens: Tensor
    step: Tensor


@dataclass(frozen=True)
class SelfDistillation:
    """How a student learns from its teacher.

    Attributes:
        alpha: Weight of the teacher; the rest is the cross-entropy with the clean tokens.
        temperature: ``tau``, which softens both distributions.
        num_steps: Steps of the teacher, ``K``.
        on_policy_share: Share of the blocks in which the student first takes 1 to ``K - 1`` steps of its own:
            what it then reads there is its own, as in decoding, and the teacher continues from there.
        certainty_weight: Weight of the student's entropy where its most likely token is the clean one, so that it
            grows sure of many tokens at once.

    Raises:
        UserError: If a value is out of range.

    Reference: arXiv 2602.08607, iterative self-distillation; states of the student's own as in arXiv 2306.13649
    (on-policy distillation); certainty after arXiv 2509.26488 (dParallel).
    """

    alpha: float = 0.7
    temperature: float = 2.0
    num_steps: int = 4
    on_policy_share: float = 0.0
    certainty_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        where = "self-distillation: "
        require_within(0, 1, **{f"{where}alpha": self.alpha, f"{where}on_policy_share": self.on_policy_share})
        require_positive(**{f"{where}temperature": self.temperature})
        require_at_least(1, **{f"{where}num_steps": self.num_steps})
        require_at_least(0, **{f"{where}certainty_weight": self.certainty_weight})
        if self.on_policy_share > 0.0 and self.num_steps < 2:
            raise UserError(
                f"self-distillation: on_policy_share is {self.on_policy_share}, but a teacher of one step leaves the "
                "student no step of its own; give num_steps of at least 2, or a share of 0"
            )


def reveal_by_block(confidence: Tensor, is_masked: Tensor, block_size: int, num_steps_left: int) -> Tensor:
    """Choose in each block its share of positions for one step, the most confident ones.

    Args:
        confidence: Probability of the token chosen at each position, ``(R, S)``.
        is_masked: Positions still masked, ``(R, S) bool``.
        block_size: Tokens per block; ``S`` is a multiple of it.
        num_steps_left: Steps including this one, ``K - j + 1``.

    Returns:
        True at ``ceil(R_j / (K - j + 1))`` positions of each block with ``R_j`` masks, ``(R, S) bool``.
    """
    blocks = is_masked.unflatten(1, (-1, block_size))
    num_revealed = num_to_reveal(blocks.sum(dim=-1, keepdim=True), num_steps_left)
    return most_confident(confidence.unflatten(1, (-1, block_size)), blocks, num_revealed).flatten(1)


@torch.no_grad()
def unmasking_trajectory(
    predict: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    is_masked: Tensor,
    num_masked: Tensor,
    num_steps: int,
    stop_after: int | None = None,
) -> Trajectory:
    """Fill the masks of all blocks in parallel, and keep the logits at the moment of each reveal.

    How many positions a step reveals follows from how many are masked, so that the host, which knows that, runs ahead.

    Args:
        predict: Gives the logits ``(m, V)`` of some positions, ``(m,) int64`` into the flattened tokens, for a filling
            ``(R, S)``.
        x_t: Partly masked tokens in whole blocks, ``(R, S) int64``.
        is_masked: Where they are masked, ``(R, S) bool``.
        num_masked: How many are in each block, ``(R, num_blocks) int64``, on the host.
        num_steps: Steps, ``K``.
        stop_after: Take this many of them only.

    Returns:
        The trajectory; a position once revealed does not change.

    Reference: arXiv 2602.08607, iterative self-distillation.
    """
    sampler = TokenSampler()
    block_size, num_left = x_t.shape[1] // num_masked.shape[1], num_masked
    tokens, left = x_t.clone(), is_masked.clone()
    reveal_step = torch.full_like(x_t, -1)
    kept: Tensor | None = None
    # Row-major place of each masked position among all of them.
    place = is_masked.flatten().cumsum(0) - 1
    for step in range(num_steps if stop_after is None else min(stop_after, num_steps)):
        if not num_left.any():
            break
        at = positions_of(left, left.device, int(num_left.sum()))
        logits = predict(tokens, at)
        if kept is None:
            kept = logits.new_zeros(len(at), logits.shape[-1])
        candidates, confidence = sampler(logits)
        full_confidence = torch.zeros_like(x_t, dtype=torch.float32).flatten().index_copy(0, at, confidence)
        full_candidates = torch.zeros_like(x_t).flatten().index_copy(0, at, candidates)
        revealed = reveal_by_block(full_confidence.view_as(x_t), left, block_size, num_steps - step)
        num_revealed = num_to_reveal(num_left, num_steps - step)
        now = positions_of(revealed.flatten().index_select(0, at), left.device, int(num_revealed.sum()))
        kept.index_copy_(0, place.index_select(0, at.index_select(0, now)), logits.index_select(0, now))
        tokens = torch.where(revealed, full_candidates.view_as(x_t), tokens)
        reveal_step = torch.where(revealed, step, reveal_step)
        left, num_left = left & ~revealed, num_left - num_revealed
    if kept is None:
        kept = predict(tokens, positions_of(is_masked, is_masked.device, int(num_masked.sum())))
    return Trajectory(kept, tokens, reveal_step)


def draw_own_steps(
    num_rows: int, num_blocks: int, settings: SelfDistillation, generator: torch.Generator | None
) -> Tensor:
    """Draw how many steps the student first takes by itself in each block.

    Args:
        num_rows: Rows, ``R``.
        num_blocks: Blocks per row.
        settings: ``on_policy_share`` and ``num_steps``.
        generator: Source of randomness, on the host.

    Returns:
        0, or 1 to ``K - 1`` in that share of the blocks, ``(R, num_blocks) int64``, on the host.
    """
    shape = num_rows, num_blocks
    is_own = torch.rand(shape, generator=generator) < settings.on_policy_share
    num_steps = torch.randint(1, settings.num_steps, shape, generator=generator)
    return num_steps * is_own


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Give ``KL(student || teacher)`` of softened distributions for each position.

    Args:
        student_logits: ``(n, V)``.
        teacher_logits: ``(n, V)``.
        temperature: ``tau``; both logits are divided by it.

    Returns:
        In nats, ``(n,) float32``.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return (student.exp() * (student - teacher)).sum(dim=-1)


def entropy_where_right(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Average the entropy over the positions whose most likely token is right.

    Args:
        logits: ``(n, V)``.
        targets: Clean tokens, ``(n,) int64``.

    Returns:
        In nats, a scalar, 0 if none is right; and how many are.

    Reference: arXiv 2509.26488, certainty-forcing distillation.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    is_right = log_probabilities.argmax(dim=-1) == targets
    num_right = is_right.sum()
    return (entropy * is_right).sum() / num_right.clamp(min=1), num_right


def self_distillation_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    settings: SelfDistillation,
    clean_logits: Tensor | None = None,
) -> tuple[tuple[LossTerm, ...], Tensor]:
    """Weigh the reverse KL against the cross-entropy.

    Args:
        student_logits: At the masked positions, ``(n, V)``.
        teacher_logits: At the same positions, ``(n, V)``; no gradient flows into them.
        targets: Clean tokens, ``(n,) int64``.
        settings: Weight and temperature.
        clean_logits: What the student predicts behind clean tokens, ``(n, V)``, if that is not what it predicts behind
            the teacher's.

    Returns:
        The term ``alpha * tau^2 * KL + (1 - alpha) * CE`` and, if it has a weight, that of the entropy of what is
        right; and CE, a scalar. All are 0 if nothing is masked.

    Reference: arXiv 2602.08607; the factor ``tau^2`` keeps the gradient's scale as ``tau`` changes (arXiv 1503.02531).
    """
    count = torch.tensor(targets.numel())
    clean_logits = student_logits if clean_logits is None else clean_logits
    if targets.numel() == 0:
        nothing = (student_logits.sum() + clean_logits.sum()) * 0.0
        cross_entropy, mixed = nothing, nothing
    else:
        cross_entropy = F.cross_entropy(clean_logits.float(), targets)
        divergence = reverse_kl(student_logits, teacher_logits.detach(), settings.temperature).mean()
        mixed = settings.alpha * settings.temperature**2 * divergence + (1.0 - settings.alpha) * cross_entropy
    terms = [LossTerm(mixed, count)]
    if settings.certainty_weight > 0.0:
        entropy, num_right = entropy_where_right(clean_logits, targets)
        terms.append(LossTerm(entropy, num_right, settings.certainty_weight))
    return tuple(terms), cross_entropy.detach()
