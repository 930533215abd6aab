"""The record of a codec beside the speech tokens that it wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import fsspec

from datamodules.formats.atomic_files import write_json
from lightning_modules.errors import UserError
from lightning_modules.token_format import RECORD_NAME, TokenFormat


def write_codec_record(folder: Path, token_format: TokenFormat, written_by: type) -> None:
    """Write `codec.json` into a folder of speech tokens.

    Args:
        folder: Where the tokens are, or will be.
        token_format: What they are.
        written_by: Class of the codec, for people.

    Raises:
        UserError: If the folder holds tokens of another codec.
    """
    there = read_codec_record(str(folder))
    if there is not None:
        there.refuse_other(
            token_format, f"the speech tokens in {folder}", f"the {written_by.__name__} that is to add to"
        )
    name = f"{written_by.__module__}.{written_by.__qualname__}"
    write_json(Path(folder) / RECORD_NAME, {**token_format.as_record(), "written_by": name})


def read_codec_record(folder: str) -> TokenFormat | None:
    """Read what codec wrote the speech tokens of a folder.

    Args:
        folder: A folder of speech tokens, or of a converted corpus, local or remote.

    Returns:
        Their format; None if no codec was recorded, as in the published sets.

    Raises:
        UserError: If the record is damaged.
    """
    address = f"{folder.rstrip('/')}/{RECORD_NAME}"
    system, path = fsspec.core.url_to_fs(address)
    try:
        content = json.loads(system.cat_file(path))
    except (FileNotFoundError, PermissionError):  # stores that may not be listed answer so for what is not there
        return None
    except ValueError as error:
        raise UserError(f"{address}: not valid JSON ({error}); write the speech tokens again") from error
    return TokenFormat.from_record(content, address)


def copy_codec_record(folders: Sequence[Path], output_dir: Path, num_codes: int | None) -> TokenFormat | None:
    """Copy the record of the speech tokens beside what they are converted to; where there is none, copy nothing.

    Args:
        folders: Folders or archives that the corpus lies in; archives hold no record.
        output_dir: Folder of the converted corpus.
        num_codes: Size of the codebook that the tokens are checked against; None if they are not.

    Returns:
        The format of the tokens, None if no codec was recorded.

    Raises:
        UserError: If the size is not that of the record, or two records differ.
    """
    found = {folder: record for folder in folders if folder.is_dir() and (record := read_codec_record(str(folder)))}
    if not found:
        return None
    first_folder, first = next(iter(found.items()))
    for folder, record in found.items():
        first.refuse_other(record, f"the speech tokens in {first_folder}", f"those in {folder}")
    if num_codes not in (None, first.codebook_size):
        raise UserError(
            f"num_codes is {num_codes}, but the codec of the speech tokens in {first_folder} has "
            f"{first.codebook_size}; set num_codes to {first.codebook_size}"
        )
    (output_dir / RECORD_NAME).write_bytes((first_folder / RECORD_NAME).read_bytes())
    return first
