"""Where the files of a corpus lie: in a folder, or in tar or zip archives of one."""

import logging
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lightning_modules.errors import UserError

ARCHIVES = (".tar", ".zip")

_log = logging.getLogger(__name__)


class CorpusFiles(ABC):
    """Files by their relative path; each process that reads them has its own."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file.

        Args:
            name: Its relative path.

        Returns:
            Its content.

        Raises:
            FileNotFoundError: If there is none of that name.
            OSError: If it cannot be read.
        """


class FolderFiles(CorpusFiles):
    """The files of a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        """Read a file; see :meth:`CorpusFiles.read`."""
        return (self.root / name).read_bytes()


class TarFiles(CorpusFiles):
    """The members of an uncompressed tar archive, read where they lie.

    Of an archive that is cut off, the members that are there are read, and the log says so.

    Args:
        path: The archive.

    Raises:
        UserError: If it is not such an archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._places[_normal(member.name)] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            if not self._places:
                raise UserError(
                    f"{path}: not an uncompressed tar archive ({error}); unpack it and name its folder"
                ) from error
            _log.warning("%s is cut off after %d members (%s)", path, len(self._places), error)

    def read(self, name: str) -> bytes:
        """Read a member; see :meth:`CorpusFiles.read`."""
        if _normal(name) not in self._places:
            raise FileNotFoundError(name)
        offset, size = self._places[_normal(name)]
        with self._path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self._path} ends in it, after {len(content)} of {size} bytes")
        return content


class ZipFiles(CorpusFiles):
    """The members of a zip archive.

    Args:
        path: The archive.

    Raises:
        UserError: If it is not a zip archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a readable zip archive ({error}); unpack it and name its folder") from error
        self._names = {_normal(name): name for name in self._archive.namelist()}

    def read(self, name: str) -> bytes:
        """Read a member; see :meth:`CorpusFiles.read`."""
        if _normal(name) not in self._names:
            raise FileNotFoundError(name)
        try:
            return self._archive.read(self._names[_normal(name)])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise OSError(f"it is damaged in the archive: {error}") from error


class SeveralFiles(CorpusFiles):
    """Files of several places, searched in order.

    Args:
        places: Where to look; the first place that has a file wins.
    """

    def __init__(self, places: Sequence[CorpusFiles]) -> None:
        self.places = places

    def read(self, name: str) -> bytes:
        """Read a file; see :meth:`CorpusFiles.read`."""
        for place in self.places:
            try:
                return place.read(name)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(name)


def open_files(paths: Sequence[Path]) -> CorpusFiles:
    """Open folders and archives as one.

    Args:
        paths: Folders, `.tar` and `.zip` archives.

    Raises:
        FileNotFoundError: If one is missing.
        UserError: If one is neither, or cannot be read.
    """
    places: list[CorpusFiles] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder or archive; fix the path")
        if path.is_dir():
            places.append(FolderFiles(path))
        elif path.suffix == ".tar":
            places.append(TarFiles(path))
        elif path.suffix == ".zip":
            places.append(ZipFiles(path))
        else:
            raise UserError(f"{path}: neither a folder nor one of {', '.join(ARCHIVES)}; unpack it and name its folder")
    return SeveralFiles(places)


def _normal(name: str) -> str:
    return str(PurePosixPath(name))
