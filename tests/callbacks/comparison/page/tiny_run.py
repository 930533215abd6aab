"""A finished comparison of two talkers, small and made by hand, for tests of its page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from callbacks.comparison.rows import ORIGINAL
from lightning_modules.evaluation.text_normalization import NORMALIZER_NAME

RATE_HZ = 16_000
BLOCK = 4
GOLD = {"a": "Lucy will fly to Moscow.", "b": "The lamp is on.", "c": 'Tea for <b>Bob</b> & "Eve".'}
HEARD = {
    ORIGINAL: {"a": "lucy will fly to moscow", "b": "the lamp is on", "c": "tea for b bob b eve"},
    "ntp": {"a": "lucy will fly to moscow", "b": "the lamp on", "c": "tea tea for b bob b eve"},
    "mdm_2": {"a": "lucy will cry to moscow now", "b": "the lamp is on", "c": ""},
}
SAYS = {ORIGINAL: (None, None), "ntp": ("ntp", BLOCK), "mdm_2": ("mdm", 2)}


def write_run(folder: Path, seed: int = 1, rtf: float = 0.1, config: dict[str, Any] | None = None) -> Path:
    """Write a run directory; `a` is the worst dialogue, `b` was drawn at random."""
    folder.mkdir(parents=True)
    rows, transcripts = [], []
    for name, (talker, steps) in SAYS.items():
        rows.append(_row(name, talker, steps, rtf))
        for example, gold in GOLD.items():
            words = {
                "gold": gold,
                "text": gold,
                "heard": HEARD[name][example],
                "kind": "trip" if example == "a" else "other",
            }
            transcripts.append({"id": example, "decoding": name, **words})
    samples = [
        _sample(folder, example, chosen) for example, chosen in (("a", "worst"), ("c", "worst"), ("b", "random"))
    ]
    system = {
        "talkers": {
            name: {"kind": kind, "num_parameters": count, "block_size": BLOCK, "text_view": "all of it"}
            for name, kind, count in (("ntp", "AutoregressiveTalker", 1000), ("mdm", "MaskedDiffusionTalker", 2000))
        },
        "thinker": {"kind": "Thinker", "num_parameters": 3000},
        "vocoder": {"kind": "ToneVocoder", "sample_rate_hz": RATE_HZ},
        "token_rate_hz": 25.0,
        "device": "cpu",
        "num_devices": 1,
        "num_threads": 1,
        "precision": "32-true",
    }
    files = {"results": rows, "transcripts": transcripts, "samples": samples, "system": system}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **config}))
    return folder


def _row(name: str, talker: str | None, steps: int | None, rtf: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name, "talker": talker, "steps": steps, "rule": "", "num_examples": 3, "wer_micro": 0.1,
        "wer_macro": 0.1, "wer_interval": [0.05, 0.2], "wer_gold_micro": 0.1, "wer_gold_interval": [0.05, 0.2],
        "voices": {}, "text_exact_match": None, "tokens_per_s": None, "rtf": None, "forwards_per_block": None,
        "first_chunk_ms": {}, "length_ratio": 1.0, "failures": {"empty": 0.0, "truncated": 0.0, "repeating": 0.0},
        "sound": {"timbre_drift": 1.1, "silent_share": 0.1}, "intervals": {"timbre_drift": [0.9, float("inf")]},
        "normalizer": NORMALIZER_NAME,
    }  # fmt: skip
    if talker is not None:
        parts = {"speech_encoder": 5.0, "thinker": 10.0, "talker": 100.0 * rtf, "vocoder": 5.0}
        row |= {"text_exact_match": 1.0, "tokens_per_s": 25 / rtf, "rtf": rtf, "forwards_per_block": float(steps or 1)}
        row["first_chunk_ms"] = {**parts, "total": sum(parts.values())}
        row["intervals"] |= {"rtf": [0.9 * rtf, 1.1 * rtf], "first_chunk_ms": [20.0, 40.0]}
    return row


def _sample(folder: Path, example: str, chosen: str) -> dict[str, Any]:
    (folder / "audio" / example).mkdir(parents=True)
    replies = []
    for name, (talker, steps) in SAYS.items():
        heard = HEARD[name][example]
        audio = _write_tone(folder, example, name.replace(" ", "-")) if heard else None
        reply: dict[str, Any] = {"name": name, "audio": audio, "text": GOLD[example], "heard": heard}
        if talker is not None:
            is_masked = talker == "mdm"
            reply |= {
                "talker": talker, "steps": steps, "block_size": BLOCK, "tokens": [5, 6, 7, 8, 9] if heard else [],
                "order": [0, 1, 0, 2, 0] if is_masked and heard else [],
                "draft": [5, 6, 7, 3, 9] if is_masked and heard else [],
                "passes": [2, 1] if heard else [0], "first_chunk_ms": {"total": 30.0},
            }  # fmt: skip
        replies.append(reply)
    query = _write_tone(folder, example, "query")
    described = {
        "id": example,
        "chosen": chosen,
        "query": query,
        "transcript": "What <i>now</i>?",
        "gold": GOLD[example],
    }
    return {**described, "kind": "trip", "word_error_rate": 0.5, "token_rate_hz": 25.0, "replies": replies}


def _write_tone(folder: Path, example: str, name: str) -> str:
    file = f"audio/{example}/{name}.wav"
    soundfile.write(folder / file, 0.3 * np.sin(np.arange(RATE_HZ // 2) * 0.2).astype(np.float32), RATE_HZ)
    return file
