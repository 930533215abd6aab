"""Talkers, vocoder and corpus with unlike tokens are refused before training; a codec at 50 Hz changes seconds only."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.spoken_dialogues import SpokenDialogueDataModule
from lightning_modules.errors import UserError
from lightning_modules.inference.token_agreement import refuse_unlike_tokens
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from lightning_modules.vocoder.windowed import WindowedCodecVocoder
from tests.lightning_modules.talker.conftest import NUM_CODES, make_talker
from tests.lightning_modules.test_speech_llm import make_batch, make_llm

FORMAT = TokenFormat("steps", NUM_CODES, 50, 24_000)


class Steps(nn.Module):
    """Speaks a constant per token, 480 samples at 24 kHz."""

    device = torch.device("cpu")

    def __init__(self, token_format: TokenFormat = FORMAT) -> None:
        super().__init__()
        self.token_format = token_format

    def decode(self, tokens: Tensor) -> Tensor:
        return (tokens.float() / NUM_CODES).repeat_interleave(self.token_format.samples_per_token, dim=1)


def make_vocoder(token_format: TokenFormat = FORMAT) -> WindowedCodecVocoder:
    return WindowedCodecVocoder(Steps(token_format), chunk_tokens=10, lookback_tokens=4, lookahead_tokens=2)


TALKERS: dict[str, Talker] = {"mdm": make_talker("mdm"), "ntp": make_talker("ntp")}
OTHER = TokenFormat("other", NUM_CODES, 50, 24_000)
SLOWER = TokenFormat("steps", NUM_CODES, 25, 24_000)


@pytest.mark.parametrize(
    ("num_codes", "corpora", "vocoder", "message"),
    [
        (31, {}, FORMAT, "the data module's num_codes has 31 codes, but the vocoder has 30; set num_codes .* to 30"),
        (31, {}, None, "talker 'mdm' has 30 codes, but the data module's num_codes has 31"),
        (None, {"/a": OTHER}, FORMAT, "the vocoder and the corpus /a .*: codec 'steps' and 'other'; use one codec"),
        (None, {"/a": SLOWER}, FORMAT, "the vocoder and the corpus /a .*: frame_rate_hz 50 and 25"),
        (None, {"/a": FORMAT, "/b": OTHER}, None, "the corpus /a and the corpus /b .*: codec 'steps' and 'other'"),
        (None, {}, TokenFormat("steps", 99, 50, 24_000), "talker 'mdm' has 30 codes, but the vocoder has 99"),
        (None, {"/a": TokenFormat("s", 99, 25, 16_000)}, None, "talker 'mdm' has 30 codes, but the corpus /a has 99"),
    ],
)
def test_unlike_tokens_are_refused(
    num_codes: int | None, corpora: dict[str, TokenFormat], vocoder: TokenFormat | None, message: str
) -> None:
    made = None if vocoder is None else make_vocoder(vocoder)
    with pytest.raises(UserError, match=message):
        refuse_unlike_tokens(TALKERS, made, num_codes, corpora)


def test_like_tokens_and_unknown_ones_pass() -> None:
    refuse_unlike_tokens(TALKERS, make_vocoder(), NUM_CODES, {"/a": FORMAT})
    refuse_unlike_tokens(TALKERS, None, NUM_CODES, {"/a": SLOWER, "/b": SLOWER})
    refuse_unlike_tokens(TALKERS, None)
    refuse_unlike_tokens({}, make_vocoder(), None, {})


def test_a_speech_llm_is_not_built_with_the_vocoder_of_another_codec() -> None:
    with torch.device("meta"):
        vocoder = CodecVocoder(SpeechCodec(channels=(8, 8, 8)))
    assert vocoder.token_format == TokenFormat("embedded", 1000, 25, 16_000)
    llm = make_llm("mdm")
    with pytest.raises(UserError, match="talker 'mdm' has 30 codes, but the vocoder has 1000; set num_codes"):
        type(llm)(llm.thinker, {"mdm": llm.talkers["mdm"]}, vocoder=vocoder)


class Recorded(L.LightningDataModule):
    """Batches of a corpus whose codec left a record."""

    def __init__(self, token_format: TokenFormat) -> None:
        super().__init__()
        self.num_codes, self.token_format = None, token_format

    def token_formats(self) -> dict[str, TokenFormat]:
        return {"/data": self.token_format}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([make_batch(0)], batch_size=None)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_corpus_of_another_codec_stops_a_training_before_its_first_step(tmp_path: Path) -> None:
    llm = make_llm("ntp")
    llm.vocoder = make_vocoder()
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, default_root_dir=tmp_path, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the vocoder and the corpus /data .* codec 'steps' and 'other'"):
        trainer.fit(llm, datamodule=Recorded(OTHER))
    assert trainer.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in llm.state_dict().items())
    trainer = L.Trainer(max_steps=1, default_root_dir=tmp_path, **settings)  # type: ignore[arg-type]
    trainer.fit(llm, datamodule=Recorded(FORMAT))
    assert trainer.global_step == 1


def test_a_datamodule_that_reads_no_tokens_has_no_format(tmp_path: Path) -> None:
    (tmp_path / "codec.json").write_text("{}")
    assert SpokenDialogueDataModule(str(tmp_path), fields=["query", "transcript"]).token_formats() == {}
    with pytest.raises(UserError, match="codec.json: 'codec' is None"):
        SpokenDialogueDataModule(str(tmp_path)).token_formats()


def test_a_codec_at_50_hz_changes_the_seconds_of_a_block_and_nothing_else() -> None:
    """Equal tokens of equal weights: as long in samples of 24 kHz as the rate says, and cut off at as many seconds."""
    embedded, faster = make_llm("mdm").eval(), make_llm("mdm").eval()
    faster.vocoder = make_vocoder()
    decoding, query = Decoding("mdm", 4), make_batch(0).query
    assert query is not None and embedded.vocoder is not None
    slow, fast = (llm.responder.answer(llm.responder.write_text(query[0]), decoding) for llm in (embedded, faster))
    # cut off behind 2 s, which are 50 tokens at 25 Hz and 100 at 50 Hz, in blocks of 8
    assert (len(slow.speech_tokens), len(fast.speech_tokens)) == (48, 96) and not (slow.ended or fast.ended)
    assert torch.equal(slow.speech_tokens, fast.speech_tokens[:48])
    assert len(fast.waveform) == 480 * len(fast.speech_tokens) and len(slow.waveform) == 640 * len(slow.speech_tokens)
    # the first block has 8 tokens, and the vocoder waits for 10 + 2
    assert fast.first_chunk_audio_s == 10 / 50 and slow.first_chunk_audio_s == 8 / 25
    assert fast.first_chunk_times.vocoder_s <= fast.times.vocoder_s
