"""The talker's vocabulary: codec tokens first, then the special ones."""

from dataclasses import dataclass

from lightning_modules.errors import UserError


@dataclass(frozen=True)
class SpeechVocabulary:
    """Ids of speech tokens and of the special tokens that follow them.

    The end of speech directly follows the codes, so that an output head of ``num_outputs`` rows can
    predict every code and EOS, and can never predict BOS, MASK or PAD.

    Args:
        num_codes: Size of the speech codebook, e.g. 6561 for the FSQ codebook of CosyVoice2.
    """

    num_codes: int

    def __post_init__(self) -> None:
        """Reject an empty codebook."""
        if self.num_codes < 1:
            raise UserError(f"num_codes is {self.num_codes}: a speech codebook has at least one code.")

    @property
    def eos_id(self) -> int:
        """End of speech; also fills the last block of a sequence."""
        return self.num_codes

    @property
    def bos_id(self) -> int:
        """Input of an autoregressive talker before the first speech token."""
        return self.num_codes + 1

    @property
    def mask_id(self) -> int:
        """A position that is still to be predicted."""
        return self.num_codes + 2

    @property
    def pad_id(self) -> int:
        """Fills a batch beyond a sequence's last block; never masked nor scored."""
        return self.num_codes + 3

    @property
    def num_outputs(self) -> int:
        """Number of tokens that can be predicted: the codes and EOS."""
        return self.num_codes + 1

    @property
    def size(self) -> int:
        """Number of tokens that can be read."""
        return self.num_codes + 4
