"""Small sets in the formats of the spoken benchmarks, with noise for speech."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE_HZ = 24_000


def noise(seconds: float = 0.1, seed: int = 0) -> np.ndarray:
    """Give speech that says nothing."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE_HZ))


def write_audio(path: Path, seconds: float = 0.1, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed), RATE_HZ)


def audio_bytes(seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seed=seed), RATE_HZ, format="WAV")
    return content.getvalue()


def write_open_audio_set(
    root: Path, name: str, rows: Sequence[dict[str, str]], without_audio: Sequence[int] = ()
) -> None:
    """Write a set of OpenAudioBench; a row's audio is `<name>_<index>.mp3`."""
    folder = root / "eval_datas" / name
    folder.mkdir(parents=True)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "audio_filename"])
        writer.writeheader()
        for index, row in enumerate(rows):
            writer.writerow({**row, "audio_filename": f"{name}_{index}.mp3"})
            if index not in without_audio:
                write_audio(folder / "audios" / f"{name}_{index}.mp3", seed=index)


def write_voice_set(
    root: Path, name: str, rows: Sequence[dict[str, Any]], split: str = "test", row_group: int = 2
) -> None:
    """Write a set of VoiceBench."""
    table = pa.Table.from_pylist(
        [{"audio": {"bytes": audio_bytes(i), "path": None}, **row} for i, row in enumerate(rows)]
    )
    (root / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / name / f"{split}-00000-of-00001.parquet", row_group_size=row_group)


def write_uro_set(root: Path, name: str, items: Sequence[dict[str, Any]], track: str = "basic") -> None:
    """Write a set of URO-Bench; an item's audio is written where `source_wav` says, or else as `audios/<index>.wav`."""
    folder = root / track / name
    lines = []
    for index, item in enumerate(items):
        item = {"source_wav": f"audios/{index}.wav", **item}
        if item["source_wav"] is not None:
            write_audio(folder / item["source_wav"], seed=index)
        lines.append(json.dumps(item))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
