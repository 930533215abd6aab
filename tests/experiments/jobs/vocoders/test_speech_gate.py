"""The gate in front of talkers: it opens for a judge that hears enough, overall and in each group of tempo."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.jobs.vocoders.speech_gate import SpeechGate
from lightning_modules.errors import UserError
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from tests.datamodules.tiny_corpus import write_index, write_split

COUNT = 8


class Listener(SpeechRecognizer):
    """Mishears one word of the replies of given numbers, on the n-th round of `COUNT` replies."""

    def __init__(self, misheard: dict[int, set[int]]) -> None:
        encoder = nn.Identity()
        encoder.output_size = 4  # type: ignore[assignment]
        super().__init__(encoder)
        self.misheard, self.round = misheard, -1

    def transcribe(self, waveforms, lengths=None) -> list[str]:  # type: ignore[no-untyped-def]
        self.round += 1
        wrong = self.misheard.get(self.round, set())
        return [f"{'ripply' if index in wrong else 'reply'} {index}" for index in range(len(waveforms))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    items = write_split(folder, "test", COUNT)
    # the slowest are the last ones
    write_index(folder, "test", [{**item, "reply_tempo": 1.4 - 0.1 * place} for place, item in enumerate(items)])
    return folder


def gate(corpus: Path, misheard: dict[int, set[int]], **settings) -> SpeechGate:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vocoder = CodecVocoder(SpeechCodec(levels=(5, 3), channels=(8, 8, 8)).eval(), num_iterations=1)
    return SpeechGate(str(corpus), vocoder, Listener(misheard), **settings)


def test_rates_are_those_of_each_group_of_tempo(corpus: Path, tmp_path: Path) -> None:
    found = gate(corpus, {0: {7}, 1: {0, 7}}, is_required=False).run(tmp_path)
    rates = {name: value for name, value in found.items() if name.endswith("wer")}
    assert {name for name, value in rates.items() if value} == {
        *("original/all/wer", "original/group 1/wer"),
        *("resynthesis/all/wer", "resynthesis/group 1/wer", "resynthesis/group 4/wer"),
    }
    assert rates["original/all/wer"] == 1 / 16 and rates["resynthesis/group 4/wer"] == 1 / 4
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| group 1, 2 | 0.70 to 0.80 | original | 25.00 (" in table
    assert table.count("| missed |") == 5 and table.count("| met |") == 5


def test_a_gate_that_is_required_stops_and_says_where(corpus: Path, tmp_path: Path) -> None:
    assert gate(corpus, {}).run(tmp_path)["resynthesis/all/wer"] == 0
    message = r"resynthesis of all 6.25 % \(at most 4.0\); resynthesis of group 4 25.00 % \(at most 4.0\)\. Train"
    with pytest.raises(UserError, match=message):
        gate(corpus, {1: {0}}).run(tmp_path)
    assert "| missed |" in (tmp_path / "results.md").read_text(encoding="utf-8"), "the table is there all the same"
    gate(corpus, {1: {0}}, max_resynthesis_wer=0.25).run(tmp_path)


def test_a_corpus_that_the_gate_cannot_split_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 replies for 9 groups"):
        gate(corpus, {}, num_groups=9).run(tmp_path)
    write_split(tmp_path, "test", 4)
    with pytest.raises(UserError, match="have no 'reply_tempo'; give a corpus that was made with `expressive`"):
        gate(tmp_path, {}).run(tmp_path)
    with pytest.raises(UserError, match="num_groups is 0"):
        gate(corpus, {}, num_groups=0)
