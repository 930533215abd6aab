"""Codec, recognizer, vocoder and thinker give on a GPU what they give on the CPU, in float32 and under bfloat16."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.acoustics.conv_speech_encoder import ConvSpeechEncoder
from lightning_modules.acoustics.log_mel import LogMel
from lightning_modules.acoustics.speech_augmentation import SpeechAugmentation
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.speech_recognizer import SpeechRecognizer
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.log_mel import WhisperLogMel
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.training.seeding import derive_generator
from lightning_modules.vocoder.codec_vocoder import CodecVocoder
from tests.lightning_modules.thinker.tiny import REPLIES, make_language_model, make_speech_encoder, make_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
LENGTHS = [16_000, 9_001, 12_345]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Turn TF32 off, which convolutions use by default and which rounds their inputs to 10 bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture
def speech() -> tuple[Tensor, Tensor]:
    """Three rows of noise of different lengths, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(3, max(LENGTHS), generator=generator), torch.tensor(LENGTHS)


def on_both(module: nn.Module, run: Callable[[nn.Module, str], Tensor]) -> tuple[Tensor, Tensor]:
    """Run a module on the CPU and on the GPU."""
    with torch.no_grad():
        on_cpu = run(module.eval(), "cpu")
        on_gpu = run(module.to(DEVICE), DEVICE)
    assert on_gpu.device.type == DEVICE
    return on_cpu, on_gpu.cpu()


@pytest.mark.parametrize("make", [LogMel, WhisperLogMel])
@pytest.mark.parametrize("autocast", [False, True])
def test_features_are_those_of_the_cpu_even_under_autocast(
    make: type[nn.Module], autocast: bool, speech: tuple[Tensor, Tensor]
) -> None:
    def run(module: nn.Module, device: str) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return module(speech[0].to(device))

    on_cpu, on_gpu = on_both(make(), run)
    assert on_gpu.dtype == torch.float32
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-3), (True, 0.1)])
@pytest.mark.parametrize("make", [lambda: ConvSpeechEncoder(32), make_speech_encoder])
def test_speech_encoders_agree(
    make: Callable[[], nn.Module], autocast: bool, tolerance: float, speech: tuple[Tensor, Tensor]
) -> None:
    def run(module: nn.Module, device: str) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast and device == DEVICE):
            frames, lengths = module(speech[0].to(device), speech[1].to(device))
        is_frame = torch.arange(frames.shape[1], device=device) < lengths.to(device)[:, None]
        return (frames * is_frame[..., None]).float()

    on_cpu, on_gpu = on_both(make(), run)
    assert (on_gpu - on_cpu).norm() < tolerance * on_cpu.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_tokens_are_those_of_the_cpu_even_under_autocast(autocast: bool, speech: tuple[Tensor, Tensor]) -> None:
    codec = SpeechCodec(channels=(16, 16, 24))

    def run(module: nn.Module, device: str) -> Tensor:
        assert isinstance(module, SpeechCodec)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return module.encode(speech[0].to(device), speech[1].to(device))[0]

    on_cpu, on_gpu = on_both(codec, run)
    assert (on_cpu == on_gpu).float().mean() > 0.97, "a coordinate on the edge of two levels may fall to either side"
    tokens = torch.randint(0, codec.codebook_size, (2, 30))
    codec.to("cpu")

    def decode(module: nn.Module, device: str) -> Tensor:
        assert isinstance(module, SpeechCodec)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return module.decode_mel(tokens.to(device), torch.tensor([30, 17], device=device))

    torch.testing.assert_close(*on_both(codec, decode), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_vocoder_speaks_on_the_gpu_streamed_as_whole(autocast: bool) -> None:
    vocoder = CodecVocoder(SpeechCodec(channels=(16, 16, 24)), num_iterations=4)
    tokens = torch.randint(0, 1000, (23,))

    def run(module: nn.Module, device: str) -> Tensor:
        assert isinstance(module, CodecVocoder)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            whole = module(tokens)
            stream = module.stream()
            parts = [stream.push(part, last=index == 3) for index, part in enumerate(tokens.split(6))]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)
        return whole

    on_cpu, on_gpu = on_both(vocoder, run)
    assert on_gpu.dtype == torch.float32
    assert (on_gpu - on_cpu).norm() < 0.05 * on_cpu.norm()


def test_the_recognizer_hears_the_same_and_its_gradients_agree(speech: tuple[Tensor, Tensor]) -> None:
    recognizer = SpeechRecognizer(ConvSpeechEncoder(32)).eval()
    rows = [row[:length] for row, length in zip(*speech, strict=True)]
    log_probs, gradients = {}, {}
    for device in ("cpu", DEVICE):
        recognizer.to(device).zero_grad()
        found, frames = recognizer(speech[0].to(device), speech[1].to(device))
        recognizer._loss(found, frames, ["go", "a", "no"]).mean.backward()
        gradients[device] = recognizer.head.weight.grad.cpu().clone()  # type: ignore[union-attr]
        log_probs[device] = found.detach()[0].cpu()
        assert len(recognizer.transcribe(rows)) == 3, "rows come from the CPU"
    torch.testing.assert_close(log_probs[DEVICE], log_probs["cpu"], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(gradients[DEVICE], gradients["cpu"], atol=1e-3, rtol=1e-3)


def test_augmentation_is_a_function_of_seed_and_step_on_the_gpu_too(speech: tuple[Tensor, Tensor]) -> None:
    augmentation, waveform = SpeechAugmentation().to(DEVICE), speech[0].to(DEVICE)
    first, again, other = (augmentation(waveform, derive_generator(DEVICE, 1, step)) for step in (5, 5, 6))
    assert first.device.type == DEVICE and first.isfinite().all()
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-3), (True, 0.1)])
def test_the_thinker_scores_and_transcribes_as_on_the_cpu(
    autocast: bool, tolerance: float, speech: tuple[Tensor, Tensor]
) -> None:
    thinker = Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), make_tokenizer())

    def run(module: nn.Module, device: str) -> Tensor:
        assert isinstance(module, Thinker)
        with torch.autocast(device, torch.bfloat16, enabled=autocast and device == DEVICE):
            output = module(speech[0].to(device), speech[1].to(device), REPLIES, ["Yes.", "No.", "I will."])
            read = module.read(["Yes.", "No.", "I will."], REPLIES)
        assert output.transcript_loss is not None
        return torch.stack([output.loss, output.transcript_loss, read.loss]).float()

    on_cpu, on_gpu = on_both(thinker, run)
    torch.testing.assert_close(on_gpu, on_cpu, atol=0, rtol=tolerance)


def test_the_thinker_streams_what_it_streams_on_the_cpu(speech: tuple[Tensor, Tensor]) -> None:
    thinker = Thinker(make_speech_encoder(), Adaptor(32, 32, 64), make_language_model(), make_tokenizer())

    def run(module: nn.Module, device: str) -> Tensor:
        assert isinstance(module, Thinker)
        return torch.stack([token.hidden for token in module.stream(module.encode(speech[0][0].to(device)), 4)])

    torch.testing.assert_close(*on_both(thinker, run), atol=1e-2, rtol=1e-2)
