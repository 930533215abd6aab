"""A way to decode speech, as a value: which talker, in how many steps, by which rules."""

from dataclasses import dataclass

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.decoding.refinement import Refinement
from lightning_modules.talker.decoding.repetition import RepetitionPenalty
from lightning_modules.talker.decoding.sampling import TokenSampler
from lightning_modules.talker.decoding.unmasking import Unmasking


@dataclass(frozen=True)
class Decoding:
    """One way to decode the speech of one talker; nothing of it is kept in the talker.

    Attributes:
        talker: Name of the talker.
        num_steps: Decoding steps per block, ``K``; the talker's default if None.
        unmasking: Which masked positions a step reveals; the paper's rule if None. For masked talkers only.
        refinement: Lets the steps behind the draft correct it by next-token prediction; all steps unmask if None, as
            in the paper. For talkers that predict next tokens, too.
        sampler: Chooses tokens; the most likely ones if None.
        repetition: Lowers the logits of recent tokens; the talker's own rule if None. For talkers that read text as a
            prefix of their speech only.
        whole_text: Wait until the whole text is written. For the same talkers only.
        fused_commit: Let a finished block ride with the next block's first pass, which writes its keys and values to
            the cache: K passes per block. Otherwise a pass of its own writes them: K + 1.
        adapter: Name of the LoRA adapter that acts on thinker and talker meanwhile; the base alone if None.
        seed: Of drawn tokens; each reply draws from a generator of its own.

    Raises:
        UserError: If a number is out of range, or no step is left to refine in.

    Reference: arXiv 2602.08607, block diffusion decoding; the fused commit is ours.
    """

    talker: str
    num_steps: int | None = None
    unmasking: Unmasking | None = None
    refinement: Refinement | None = None
    sampler: TokenSampler | None = None
    repetition: RepetitionPenalty | None = None
    whole_text: bool = False
    fused_commit: bool = True
    adapter: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values against each other."""
        require_at_least(1, **{f"decoding of {self.talker}: num_steps": self.num_steps})
        if not 0 <= self.seed < 2**63:
            raise UserError(f"decoding of {self.talker}: seed is {self.seed}; give a whole number from 0 to 2^63 - 1")
        is_adaptive = self.unmasking is not None and self.unmasking.is_adaptive
        if self.refinement is None or self.num_steps is None or is_adaptive:
            return
        if self.refinement.draft_steps >= self.num_steps:
            raise UserError(
                f"decoding of {self.talker}: {self.refinement.draft_steps} of {self.num_steps} steps draft, and none "
                "is left to refine in; lower refinement.draft_steps, raise num_steps, or set "
                "unmasking.confidence_threshold or entropy_bound, with which a draft may need fewer steps"
            )

    @property
    def rule(self) -> str:
        """How a block is filled, whatever the number of steps, in words for tables; empty for the paper's way."""
        rules = self.unmasking, self.refinement, self.sampler, self.repetition
        parts = [str(one) for one in rules if one is not None]
        if self.whole_text:
            parts.append("whole text first")
        if not self.fused_commit:
            parts.append("separate commit")
        if self.adapter is not None:
            parts.append(f"adapter {self.adapter}")
        return ", ".join(part for part in parts if part)
