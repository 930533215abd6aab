"""A corpus of noise in the released layout, for the tests of the readers."""

import json
from pathlib import Path

import numpy as np
import soundfile

from datamodules.batch import SAMPLE_RATE_HZ


def write_split(root: Path, split: str, count: int, seed: int = 0, num_codes: int = 50) -> list[dict]:
    """Write a split of `count` items with replies of 4 to 20 tokens and return its JSON list."""
    generator = np.random.default_rng([seed, len(split)])
    folder = root / "spoken_examples"
    for name in ("audios", "replies", "codec_tokens"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        name = f"{split}_{index}"
        length = int(generator.integers(4, 21))
        item = {
            "id": name,
            "speech": f"spoken_examples/audios/{name}.wav",
            "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": f"Reply {index}."}],
            "units": f"spoken_examples/codec_tokens/{name}.npy",
            "transcript": f"Query {index}?",
            "reply_speech": f"spoken_examples/replies/{name}.wav",
        }
        write_wav(root / item["speech"], generator.uniform(-0.5, 0.5, 400 + 16 * index))
        write_wav(root / item["reply_speech"], generator.uniform(-0.5, 0.5, 640 * length))
        np.save(root / item["units"], generator.integers(0, num_codes, length, dtype=np.int32))
        items.append(item)
    write_index(root, split, items)
    return items


def write_index(root: Path, split: str, items: list[dict]) -> Path:
    """Write the JSON list of a split and return its path."""
    path = root / "spoken_examples" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write ``(S,)`` or ``(S, channels)`` samples as 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")


def write_dialogues(root: Path, split: str, seed: int = 0, num_codes: int = 50) -> list[dict]:
    """Write a split of four items: two earlier turns spoken, one spoken and one written, one written, none."""
    generator = np.random.default_rng([seed, 7])
    items = write_split(root, split, 4, seed, num_codes)
    for item, spoken in zip(items, ([True, True], [True, False], [False], []), strict=True):
        paths, turns = [], []
        for place, is_spoken in enumerate(spoken):
            text = f"Earlier query {place} of {item['id']}?"
            turn = {"from": "human", "value": "<speech>" if is_spoken else text}
            if is_spoken:
                paths.append(f"spoken_examples/audios/{item['id']}-{place}.wav")
                write_wav(root / paths[-1], generator.uniform(-0.5, 0.5, 300 + 50 * place))
                turn["transcript"] = text
            turns += [turn, {"from": "gpt", "value": f"Earlier reply {place}."}]
        item["conversations"] = turns + item["conversations"]
        if paths:
            item["speech"] = [*paths, item["speech"]]
    write_index(root, split, items)
    return items
