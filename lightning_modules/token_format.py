"""What the speech tokens of a codec are, so that a corpus, talkers and a vocoder that do not fit are told apart."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive

# beside the tokens that a codec wrote
RECORD_NAME = "codec.json"


@dataclass(frozen=True)
class TokenFormat:
    """Tokens of one codec.

    Attributes:
        codec: Name of the codec; codecs of one size and rate, such as NeuCodec and X-Codec2, differ in it.
        codebook_size: Number of distinct tokens; ids are 0 .. codebook_size - 1.
        frame_rate_hz: Tokens per second of speech.
        sample_rate: Samples per second of the speech that the tokens are decoded to.

    Raises:
        UserError: If a number is out of its range, or a token does not stand for a whole number of samples.
    """

    codec: str
    codebook_size: int
    frame_rate_hz: float
    sample_rate: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, codebook_size=self.codebook_size, sample_rate=self.sample_rate)
        require_positive(frame_rate_hz=self.frame_rate_hz)
        samples = self.sample_rate / self.frame_rate_hz
        if abs(samples - round(samples)) > 1e-6:
            raise UserError(
                f"a token of {self.codec!r} stands for {samples:g} samples ({self.sample_rate} Hz, "
                f"{self.frame_rate_hz:g} tokens per second); that must be a whole number"
            )

    @property
    def samples_per_token(self) -> int:
        """Samples of decoded speech that stand for one token."""
        return round(self.sample_rate / self.frame_rate_hz)

    def as_record(self) -> dict[str, Any]:
        """Give the attributes as they stand in ``codec.json``."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any, where: str) -> Self:
        """Read what :meth:`as_record` gave; other keys are left alone.

        Args:
            record: Content of the file.
            where: Its path, for the error.

        Raises:
            UserError: If a key is missing or has a value of another kind.
        """
        kinds = {"codec": str, "codebook_size": int, "frame_rate_hz": (int, float), "sample_rate": int}
        values = record if isinstance(record, Mapping) else {}
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):  # type: ignore[arg-type]
                raise UserError(
                    f"{where}: {name!r} is {values.get(name)!r}, so that it does not tell which codec wrote the "
                    "tokens; write the tokens again, or remove the file, and nothing is checked against it"
                )
        return cls(**{name: values[name] for name in kinds})

    def refuse_other(self, other: "TokenFormat", own_name: str, other_name: str) -> None:
        """Refuse two parts whose tokens differ.

        Args:
            other: The tokens of the other part.
            own_name: What has these tokens, for the error, such as "the vocoder".
            other_name: What has the others.

        Raises:
            UserError: If they differ in anything, with both values.
        """
        own, others = asdict(self), asdict(other)
        differing = [name for name in own if own[name] != others[name]]
        if differing:
            told = ", ".join(f"{name} {own[name]!r} and {others[name]!r}" for name in differing)
            raise UserError(
                f"{own_name} and {other_name} have tokens of different codecs: {told}; use one codec for both, or "
                "write the speech tokens again with the vocoder's codec"
            )
