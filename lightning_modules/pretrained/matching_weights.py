"""The one check that weights which were read are those of the module that they are for."""

from collections.abc import Mapping

from torch import Size

from lightning_modules.errors import UserError

# Names that an error lists of each kind.
MAX_NAMED = 3


def refuse_other_weights(
    expected: Mapping[str, Size | None], found: Mapping[str, Size | None], what: str, remedy: str
) -> None:
    """Refuse weights of which any is missing, unexpected or of another shape.

    Args:
        expected: Shapes by the names that there must be; None where any shape will do.
        found: Shapes by the names that there are; None where it is not known.
        what: What does not fit, for the error, such as "/path/last.ckpt does not fit its module".
        remedy: What to do about it, for the error.

    Raises:
        UserError: If they are not the same, with the first names of each kind.
    """
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise UserError(
            f"{what}: {len(missing)} weights are missing ({missing[:MAX_NAMED]}), {len(unexpected)} are unexpected "
            f"({unexpected[:MAX_NAMED]}); {remedy}"
        )
    for name, shape in expected.items():
        own = found[name]
        if shape is not None and own is not None and own != shape:
            raise UserError(f"{what}: {name} has the shape {tuple(own)}, where {tuple(shape)} is needed; {remedy}")
