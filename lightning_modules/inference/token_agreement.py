"""Talkers, vocoder and corpora speak in the tokens of one codec, or training does not start."""

from collections.abc import Mapping
from typing import Any

from lightning_modules.errors import UserError
from lightning_modules.talker.base import Talker
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.base import Vocoder


def refuse_unlike_tokens(
    talkers: Mapping[str, Talker],
    vocoder: Vocoder | None,
    num_codes: int | None = None,
    corpora: Mapping[str, TokenFormat] | None = None,
) -> None:
    """Refuse parts whose speech tokens differ.

    A talker's vocabulary is the codebook of a codec and a few special tokens. A corpus with a record, and a vocoder,
    say whose codebook: all must agree on it, on tokens per second and on samples per second.

    Args:
        talkers: Talkers by name.
        vocoder: What decodes their tokens; None if they only train.
        num_codes: Codebook size that the data module checks tokens against; None if it does not.
        corpora: What codec wrote the tokens of each corpus, by its folder.

    Raises:
        UserError: If two differ, with both values and the one to set.
    """
    known = {f"the corpus {name}": one for name, one in (corpora or {}).items()}
    if vocoder is not None and vocoder.token_format is not None:
        known = {"the vocoder": vocoder.token_format, **known}
    for name, one in list(known.items())[1:]:
        first_name, first = next(iter(known.items()))
        first.refuse_other(one, first_name, name)
    sizes = {name: one.codebook_size for name, one in known.items()}
    if num_codes is not None:
        sizes["the data module's num_codes"] = num_codes
    if not sizes:
        return
    reference, size = next(iter(sizes.items()))
    given = {f"talker {name!r}": talker.vocabulary.num_codes for name, talker in talkers.items()}
    for name, other in {**sizes, **given}.items():
        if other != size:
            raise UserError(
                f"{name} has {other} codes, but {reference} has {size}; set num_codes of talkers and data module to "
                f"{size}, the codebook size of the codec"
            )


class TokenAgreement:
    """Base of a LightningModule with ``talkers`` and a ``vocoder`` that must fit each other and the data."""

    talkers: Any
    vocoder: Any

    def check_tokens(self, num_codes: int | None = None, corpora: Mapping[str, TokenFormat] | None = None) -> None:
        """Refuse talkers, a vocoder or corpora whose tokens are of another codec; see :func:`refuse_unlike_tokens`."""
        refuse_unlike_tokens(dict(self.talkers.items()), self.vocoder, num_codes, corpora)

    def setup(self, stage: str) -> None:
        """Check the tokens of the corpus before the first batch."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)  # type: ignore[attr-defined]
        if hasattr(datamodule, "token_formats"):
            self.check_tokens(datamodule.num_codes, datamodule.token_formats())
