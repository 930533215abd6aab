"""Reads text states where they lie: in a folder, or at any address that fsspec knows."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import fsspec
import numpy as np
import torch
from torch import Tensor

from datamodules.batch import SpokenExample, from_bits
from datamodules.shards.byte_ranges import ByteRanges, RangeCache, retry
from datamodules.shards.shard_files import DamagedExampleError
from datamodules.shards.shard_index import INDEX, SHARDS
from datamodules.shards.text_state_index import ID_BYTES, TEXT_STATES, TextStateIndex, bytes_per_token, checksum
from lightning_modules.errors import UserError


@dataclass(frozen=True)
class StoredStates:
    """What a thinker said to one reply.

    Attributes:
        token_ids: Text tokens, ``(N,) int64``.
        hidden: The hidden state that predicted each, ``(N, hidden_size) bfloat16``.
    """

    token_ids: Tensor
    hidden: Tensor

    def added_to(self, example: SpokenExample) -> SpokenExample:
        """Return an example that holds them, too."""
        return replace(example, text_ids=self.token_ids, text_hidden=self.hidden)


class TextStateFiles:
    """Text states of examples, read by byte range.

    Args:
        url: Folder of the shards, local or remote.
        index: Where everything lies.
        num_attempts: Attempts per read, with increasing waits between them.
        cache: Keeps what was read of remote shards.
    """

    def __init__(self, url: str, index: TextStateIndex, num_attempts: int = 6, cache: RangeCache | None = None) -> None:
        self.url, self.index = url, index
        self._files = ByteRanges(url, num_attempts, cache)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.index)

    @classmethod
    def open(
        cls,
        folder: str,
        ids: Sequence[str] | np.ndarray,
        where: str,
        num_attempts: int = 6,
        cache: RangeCache | None = None,
    ) -> Self:
        """Open the text states of a corpus.

        Args:
            folder: Directory or address that holds `text_states/`.
            ids: Names of the examples, in the order in which rows count them.
            where: What to call the corpus in an error.
            num_attempts: Attempts per read.
            cache: Keeps what was read.

        Raises:
            FileNotFoundError: If there is no index, or an example has no text states.
            OSError: If the storage cannot be reached.
            UserError: If the index is damaged, or the states are of an older form.
        """
        url = f"{folder.rstrip('/')}/{TEXT_STATES}"
        system, path = fsspec.core.url_to_fs(url)
        try:
            content = retry(lambda: system.cat_file(f"{path}/{INDEX}"), num_attempts, url)
        except FileNotFoundError:
            if not url.startswith("http") and system.glob(f"{path}/*.npy"):
                raise UserError(
                    f"{url} holds text states of an older form, one .npy file per example; run the stage text_states "
                    "again with --force (or delete its run directory and repeat the command), which writes token ids "
                    "and bfloat16 hidden states in shards"
                ) from None
            raise FileNotFoundError(
                f"{url}/{INDEX}: no index of text states; run the stage text_states to its end, or set "
                "text_states_root, or text_states of the sharded set, to the run that wrote them"
            ) from None
        index = TextStateIndex.read(io.BytesIO(content), f"{url}/{INDEX}").of_examples(ids, where)
        return cls(f"{url}/{SHARDS}", index, num_attempts, cache)

    def read(self, row: int, reply: str) -> StoredStates:
        """Read the states of one example; see :meth:`read_many`.

        Raises:
            DamagedExampleError: If they are not what was written for this reply.
            OSError: If the storage cannot be reached after all attempts.
        """
        (found,) = self.read_many([row], [reply])
        if isinstance(found, DamagedExampleError):
            raise found
        return found

    def read_many(self, rows: Sequence[int], replies: Sequence[str]) -> list[StoredStates | DamagedExampleError]:
        """Read the states of several examples; remote ones at the same time.

        Args:
            rows: Places of the examples in the corpus.
            replies: Their texts.

        Returns:
            The states of each, or what is wrong if they are not what was written for this reply.

        Raises:
            OSError: If the storage cannot be reached after all attempts.
        """
        index, width = self.index, int(self.index.hidden_size)
        taken = np.asarray(rows, dtype=np.int64)
        begins, counts = index.offsets[taken], index.num_tokens[taken].astype(np.int64)
        ends = begins + counts * bytes_per_token(width)
        shards = index.shards[index.shard_of[taken]].tolist()
        contents = self._files.read(list(zip(shards, begins.tolist(), ends.tolist(), strict=True)))
        expected = index.checksums[taken].tolist()
        found: list[StoredStates | DamagedExampleError] = []
        for row, reply, shard, content, count, crc in zip(
            rows, replies, shards, contents, counts.tolist(), expected, strict=True
        ):
            if content is None or checksum(reply, content) != crc:
                name = index.ids[row]
                found.append(
                    DamagedExampleError(
                        f"{name}: its text states in {shard} are damaged, or were written for another reply"
                    )
                )
                continue
            token_ids = torch.from_numpy(np.frombuffer(content, "<i4", count).astype(np.int64))
            bits = np.frombuffer(content, "<u2", count * width, ID_BYTES * count).astype(np.uint16)
            found.append(StoredStates(token_ids, from_bits(bits.reshape(count, width))))
        return found
