"""What the decodings of a finished comparison said, as its `transcripts.json` has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.errors import UserError

Records = list[dict[str, str]]


def read_records(run: Path, decodings: Sequence[str] = ()) -> dict[str, Records]:
    """Read what decodings of a comparison said.

    Args:
        run: The directory of a stage that ended with a comparison.
        decodings: Their names; all, references included, if there is none.

    Returns:
        Records by decoding.

    Raises:
        FileNotFoundError: If there is no comparison.
        UserError: If it has no such decoding.
    """
    file = run / "transcripts.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} holds no comparison; give the directory of a finished stage with test: true")
    found: dict[str, Records] = {}
    for record in json.loads(file.read_text(encoding="utf-8")):
        found.setdefault(record["decoding"], []).append(record)
    unknown = [name for name in decodings if name not in found]
    if unknown:
        raise UserError(f"{file} has no decoding {unknown[0]!r}; choose among {', '.join(found)}")
    return {name: found[name] for name in decodings or found}
