"""CosyVoice2's vocoder over a stand-in for the user's checkout: the grid, the hold-back, and what is told when missing.

By hand, CosyVoice's own classes of March 2026, built by its configuration (with fewer layers) and with random weights
that were saved and loaded, gave bit by bit the samples of the whole for 32 tokens in 6 pushes; its packages are no
requirement here, and those that only training needs were stubbed. Published weights were never at hand.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.errors import UserError
from lightning_modules.vocoder.cosyvoice2 import CosyVoice2Vocoder
from lightning_modules.vocoder.cosyvoice2_checkout import (
    Voice,
    import_from_checkout,
    load_flow_and_hift,
    needed_modules,
    not_needed,
)
from tests.lightning_modules.vocoder.stand_in_cosyvoice import CONFIG, FLOW, HIFT, write_checkout, write_model
from tests.lightning_modules.vocoder.test_windowed import pushed

NAMES: dict = {}
exec(FLOW + HIFT, NAMES)  # the classes, without a checkout


def make_vocoder(num_prompt_tokens: int = 0, seed: int = 0) -> CosyVoice2Vocoder:
    prompt = torch.arange(num_prompt_tokens, dtype=torch.int32)[None]
    voice = Voice(torch.ones(1, 192), prompt, torch.zeros(1, 2 * num_prompt_tokens, 80))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CosyVoice2Vocoder(NAMES["CausalMaskedDiffWithXvec"](), NAMES["HiFTGenerator"](), voice, seed=seed)


VOCODERS = [make_vocoder(), make_vocoder(30)]


def make_tokens(length: int) -> torch.Tensor:
    return torch.randint(0, 6561, (length,), generator=torch.Generator().manual_seed(length))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(VOCODERS), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_streamed_is_whole(vocoder: CosyVoice2Vocoder, sizes: list[int], end_apart: bool) -> None:
    tokens, before = make_tokens(sum(sizes)), torch.random.get_rng_state()
    whole = vocoder(tokens)
    assert whole.shape == (960 * len(tokens),)
    assert torch.equal(pushed(vocoder, tokens, sizes, end_apart), whole)
    assert torch.equal(torch.random.get_rng_state(), before), "nothing else is drawn from HiFT's noise"


def test_chunks_grow_and_the_first_fills_up_the_prompt() -> None:
    plain, prompted = VOCODERS[0].stream(), VOCODERS[1].stream()
    assert [plain.chunk_end(begin) for begin in (0, 25, 75, 175, 275)] == [25, 75, 175, 275, 375]
    assert [prompted.chunk_end(begin) for begin in (0, 45, 95)] == [45, 95, 195]


def test_samples_come_out_three_tokens_and_160_ms_behind() -> None:
    stream = VOCODERS[0].stream()
    emitted = [len(stream.push(torch.tensor([token]), last=token == 89)) for token in range(90)]
    assert {place: count for place, count in enumerate(emitted) if count} == {
        27: 25 * 960 - 3840, 77: 50 * 960, 89: 15 * 960 + 3840,
    }  # fmt: skip


def test_one_chunk_is_flow_and_hift_called_directly() -> None:
    vocoder, tokens = VOCODERS[0], make_tokens(20)
    mel = vocoder.decode_mel(tokens, is_last=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples, _ = vocoder.hift.inference(speech_feat=mel)
    torch.testing.assert_close(vocoder(tokens), samples[0], atol=1e-5, rtol=0)
    assert (make_vocoder(seed=1)(tokens) - samples[0]).abs().max() > 0.1


def test_what_it_takes() -> None:
    vocoder = VOCODERS[0]
    assert (vocoder.codebook_size, vocoder.frame_rate_hz, vocoder.sample_rate) == (6561, 25.0, 24_000)
    with pytest.raises(UserError, match=r"tokens must lie in 0..6560, got 6561..6561"):
        vocoder(torch.tensor([6561]))
    with pytest.raises(UserError, match="speaks at most 24 s with its prompt"):
        vocoder(make_tokens(601))
    with pytest.raises(UserError, match="first_chunk_tokens is 0"):
        CosyVoice2Vocoder(vocoder.flow, vocoder.hift, first_chunk_tokens=0)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield write_checkout(tmp_path / "CosyVoice"), write_model(tmp_path / "CosyVoice2-0.5B")
    for name in [name for name in sys.modules if name.split(".")[0] in ("cosyvoice", "matcha")]:
        del sys.modules[name]


def test_classes_are_found_in_the_checkout_and_their_packages_are_told_if_missing(folders: tuple[Path, Path]) -> None:
    checkout, model_dir = folders
    module = import_from_checkout(checkout, "cosyvoice.flow.flow")
    assert Path(module.__file__).is_relative_to(checkout) and module.CausalMaskedDiffWithXvec().token_mel_ratio == 2
    (checkout / "cosyvoice" / "hifigan" / "generator.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(UserError, match="importing cosyvoice.hifigan.generator failed .*a_package_that_is_not_there"):
        load_flow_and_hift(checkout, model_dir)
    with pytest.raises(UserError, match=f"comes from {checkout}.*, not from .*other; uninstall the other one"):
        import_from_checkout(checkout.parent / "other", "cosyvoice.flow.flow")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("CosyVoice/cosyvoice/flow/flow.py", "there is no .*flow.py; clone FunAudioLLM/CosyVoice with its submodules"),
        ("CosyVoice/third_party/Matcha-TTS/matcha", "there is no .*matcha; run 'git submodule update"),
        ("CosyVoice2-0.5B/flow.pt", "there is no .*flow.pt; give the folder of the model CosyVoice2-0.5B as model_dir"),
        ("CosyVoice2-0.5B/cosyvoice2.yaml", "there is no .*cosyvoice2.yaml; give the folder"),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_missing_file_is_told(folders: tuple[Path, Path], missing: str, message: str, device: str) -> None:
    path = folders[0].parent / missing
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    with torch.device(device), pytest.raises(FileNotFoundError, match=message):
        CosyVoice2Vocoder.from_checkout(str(folders[0]), str(folders[1]))


def test_it_is_built_without_weights_to_be_checked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with torch.device("meta"):
        vocoder = CosyVoice2Vocoder.from_checkout(str(folders[0]), str(folders[1]))
    assert vocoder.codebook_size == 6561 and "cosyvoice.flow.flow" not in sys.modules
    with pytest.raises(FileNotFoundError, match="spk2info.pt: no such file of speakers"):
        CosyVoice2Vocoder.from_checkout(str(folders[0]), str(folders[1]), str(tmp_path / "spk2info.pt"), "anna")


def test_a_voice_is_read_as_cosyvoice_writes_it(tmp_path: Path) -> None:
    entry = {
        "flow_embedding": torch.ones(1, 192),
        "flow_prompt_speech_token": torch.arange(4, dtype=torch.int32)[None],
        "prompt_speech_feat": torch.zeros(1, 8, 80),
    }
    torch.save({"anna": entry, "ben": {"embedding": torch.zeros(1, 192)}}, tmp_path / "spk2info.pt")
    voice = Voice.read(tmp_path / "spk2info.pt", "anna")
    assert voice.embedding.sum() == 192 and voice.prompt_tokens.tolist() == [[0, 1, 2, 3]]
    assert Voice.read(tmp_path / "spk2info.pt", "ben").prompt_mel.shape == (1, 0, 80)
    with pytest.raises(UserError, match=r"holds no speaker 'carl', but \['anna', 'ben'\]"):
        Voice.read(tmp_path / "spk2info.pt", "carl")


def test_only_flow_and_hift_of_the_configuration_are_built() -> None:
    assert needed_modules(CONFIG) == ["cosyvoice.flow.flow", "cosyvoice.hifigan.generator", "cosyvoice.flow.decoder"]
    assert not_needed(CONFIG) == ["__set_seed1", "llm", "get_tokenizer", "data_pipeline"]
    with pytest.raises(UserError, match=r"has no \['hift'\]"):
        not_needed("flow: 1\n")
