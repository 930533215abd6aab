"""The record of a codec beside its tokens: written, read, copied by a conversion, and never mixed."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.conversion.packing import PackingRules
from datamodules.formats.codec_record import copy_codec_record, read_codec_record, write_codec_record
from datamodules.sharded_dialogues import ShardedDialogueDataModule, ShardedSet
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from lightning_modules.errors import UserError
from lightning_modules.token_format import TokenFormat
from tests.datamodules.conversion.test_corpus_converter import convert
from tests.datamodules.tiny_corpus import write_split

NEUCODEC = TokenFormat("neucodec", 50, 50, 24_000)


class Codec:
    """Has a name."""


def test_a_record_is_read_where_it_was_written(tmp_path: Path) -> None:
    assert read_codec_record(str(tmp_path)) is None
    write_codec_record(tmp_path, NEUCODEC, Codec)
    write_codec_record(tmp_path, NEUCODEC, Codec)
    assert read_codec_record(f"{tmp_path}/") == read_codec_record(f"file://{tmp_path}") == NEUCODEC
    assert json.loads((tmp_path / "codec.json").read_text())["written_by"] == f"{__name__}.Codec"
    assert SpokenDialogueDataModule("elsewhere", units_root=str(tmp_path)).token_formats() == {str(tmp_path): NEUCODEC}
    with pytest.raises(UserError, match=f"the speech tokens in {tmp_path} and the Codec .* codec 'neucodec' and 'b'"):
        write_codec_record(tmp_path, TokenFormat("b", 50, 50, 24_000), Codec)
    (tmp_path / "codec.json").write_text("{")
    with pytest.raises(UserError, match="codec.json: not valid JSON"):
        read_codec_record(str(tmp_path))


def test_shards_know_the_codec_and_limits_follow_its_rate(tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    items = write_split(corpus, "train", 4)
    other.mkdir()
    longest = 20  # tokens; replies of the corpus have 4 to 20
    rules = PackingRules(max_units=longest // 2, max_units_per_character=1.0, min_units_limit=100)
    index, report, _ = convert(tmp_path, corpus, "at_25_hz", rules=rules)
    assert report["kinds"]["long_reply"] + len(index) == len(items) and report["num_faults"] > 0
    write_codec_record(corpus, NEUCODEC, Codec)
    index, report, out = convert(tmp_path, corpus, "at_50_hz", files=[str(corpus), str(other)], rules=rules)
    assert (len(index), report["num_faults"]) == (len(items), 0)
    scaled = rules.at_rate(50)
    assert (scaled.max_units, scaled.max_units_per_character, scaled.min_units_limit) == (longest, 2.0, 200)
    data = ShardedDialogueDataModule({"a": ShardedSet(str(out)), "b": ShardedSet(str(tmp_path / "at_25_hz"))})
    assert data.token_formats() == {str(out): NEUCODEC} and data.num_codes is None
    with pytest.raises(UserError, match=f"num_codes is 60, .* in {corpus} has 50; set num_codes to 50"):
        convert(tmp_path, corpus, "other_size", rules=PackingRules(num_codes=60))
    np.save(corpus / items[1]["units"], np.array([3, 50]))
    _, report, _ = convert(tmp_path, corpus, "size_of_the_record", rules=rules)
    assert report["kinds"] == {"units_outside_codebook": 1}
    write_codec_record(other, TokenFormat("b", 50, 50, 24_000), Codec)
    with pytest.raises(UserError, match=f"{corpus} and those in {other} .*codec 'neucodec' and 'b'"):
        copy_codec_record([corpus, other], tmp_path, None)
