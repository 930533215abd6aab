"""CosyVoice2's vocoder: speech tokens at 25 Hz to log-mel by flow matching, and to speech at 24 kHz by HiFT."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.token_format import TokenFormat
from lightning_modules.vocoder.base import Vocoder
from lightning_modules.vocoder.chunk_grid import ChunkGridStream
from lightning_modules.vocoder.cosyvoice2_checkout import NUM_MELS, Voice, check_checkout, load_flow_and_hift

COSYVOICE2_TOKENS = TokenFormat("cosyvoice2", 6561, 25, 24_000)
MEL_HOP_SAMPLES = 480
CACHED_FRAMES = 8
CACHED_SAMPLES = CACHED_FRAMES * MEL_HOP_SAMPLES
LOOKAHEAD_TOKENS = 3  # what the flow's encoder reads behind a chunk
NUM_GROWTHS = 2  # chunks double twice: 25, 50, 100


class CosyVoice2Vocoder(Vocoder):
    """Flow and HiFT on a fixed grid of chunks: 25 tokens, then 50, then 100 each.

    A chunk recomputes the flow over all tokens so far, with attention that does not reach beyond its chunk of 25
    tokens, so that earlier frames stay as they are. The flow's noise is a fixed table over absolute frames; that of
    HiFT is drawn from the seed and the chunk. HiFT hears 8 earlier frames and its own excitation of them again, and its
    samples fade from one chunk into the next over 160 ms. Streamed and whole output are the samples of this grid.

    It was written against the code of CosyVoice of March 2026 and never ran with its published weights.

    Args:
        flow: ``CausalMaskedDiffWithXvec`` of CosyVoice.
        hift: ``HiFTGenerator`` of CosyVoice.
        voice: Whose voice it speaks with.
        first_chunk_tokens: Tokens of the first chunk; the attention of the published flow is in chunks of 25.
        seed: Of HiFT's noise.

    Raises:
        UserError: If a number is out of range, or the flow redraws its noise for every chunk.

    Reference: CosyVoice 2, arXiv 2412.10117; ``CosyVoice2Model.token2wav``, whose chunks depend on when tokens come.
    """

    flow: Any
    hift: Any
    embedding: Tensor
    prompt_tokens: Tensor
    prompt_mel: Tensor

    def __init__(
        self,
        flow: nn.Module,
        hift: nn.Module,
        voice: Voice | None = None,
        first_chunk_tokens: int = 25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_at_least(1, first_chunk_tokens=first_chunk_tokens)
        require_at_least(0, seed=seed)
        self.flow, self.hift, self.seed = flow.eval(), hift.eval(), seed
        self.token_format = COSYVOICE2_TOKENS
        self.sample_rate, self.samples_per_token = COSYVOICE2_TOKENS.sample_rate, COSYVOICE2_TOKENS.samples_per_token
        self.first_chunk_tokens = first_chunk_tokens
        voice = voice or Voice.read(None, None)
        self.register_buffer("embedding", voice.embedding.float(), persistent=False)
        self.register_buffer("prompt_tokens", voice.prompt_tokens.to(torch.int32), persistent=False)
        self.register_buffer("prompt_mel", voice.prompt_mel.float(), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_checkout(
        cls,
        checkout: str,
        model_dir: str,
        speakers: str | None = None,
        speaker: str | None = None,
        first_chunk_tokens: int = 25,
        seed: int = 0,
    ) -> "CosyVoice2Vocoder":
        """Load the vocoder by the user's own checkout of CosyVoice.

        Args:
            checkout: Folder of FunAudioLLM/CosyVoice, with its submodule Matcha-TTS.
            model_dir: Folder of CosyVoice2-0.5B; of it ``cosyvoice2.yaml``, ``flow.pt`` and ``hift.pt`` are read.
            speakers: A ``spk2info.pt``; without it the flow speaks without speaker and prompt.
            speaker: Which of its speakers.
            first_chunk_tokens: See the class.
            seed: See the class.

        Raises:
            FileNotFoundError: If a file is missing.
            UserError: If an import fails, or weights or speaker are not there.
        """
        voice = Voice.read(None if speakers is None else Path(speakers), speaker)
        check_checkout(Path(checkout), Path(model_dir))
        if is_on_meta():
            # CosyVoice's constructors compute with NumPy; the files are there, and that is what can be checked.
            return cls(nn.Identity(), nn.Identity(), voice, first_chunk_tokens, seed)
        flow, hift = load_flow_and_hift(Path(checkout), Path(model_dir))
        if not isinstance(getattr(flow.decoder, "rand_noise", None), Tensor):
            raise UserError(
                f"the flow of {checkout} redraws its noise for every chunk, so that streamed speech would depend on "
                "its chunks; update the checkout to one whose CausalConditionalCFM has rand_noise"
            )
        return cls(flow, hift, voice, first_chunk_tokens, seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def first_chunk_end(self) -> int:
        """End of the first chunk; together with the prompt it fills whole chunks of the flow's attention."""
        return self.first_chunk_tokens + -self.prompt_tokens.shape[1] % self.first_chunk_tokens

    def stream(self) -> "CosyVoice2Stream":
        """Open a streaming session for one utterance."""
        return CosyVoice2Stream(self)

    def decode_mel(self, tokens: Tensor, is_last: bool) -> Tensor:
        """Run the flow over prompt and tokens ``(n,)``; gives log-mel ``(1, 80, F)`` behind the prompt.

        Unless they are the last, the last 3 tokens are only looked ahead to and get no frames.

        Raises:
            UserError: If the utterance is longer than the flow's table of noise.
        """
        num_frames = self.flow.token_mel_ratio * (self.prompt_tokens.shape[1] + len(tokens))
        if num_frames > self.flow.decoder.rand_noise.shape[2]:
            seconds = self.flow.decoder.rand_noise.shape[2] * MEL_HOP_SAMPLES / self.sample_rate
            raise UserError(f"CosyVoice2 speaks at most {seconds:g} s with its prompt; end the reply earlier")

        def count(one: Tensor) -> Tensor:
            return torch.tensor([one.shape[1]], dtype=torch.int32, device=self.device)

        tokens = tokens[None].to(torch.int32)
        mel, _ = self.flow.inference(
            token=tokens,
            token_len=count(tokens),
            prompt_token=self.prompt_tokens,
            prompt_token_len=count(self.prompt_tokens),
            prompt_feat=self.prompt_mel,
            prompt_feat_len=count(self.prompt_mel),
            embedding=self.embedding,
            streaming=True,
            finalize=is_last,
        )
        return mel

    def speak(self, mel: Tensor, source: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Run HiFT with noise that is a function of the seed and the chunk's begin; gives samples and excitation."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed + begin)
            return self.hift.inference(speech_feat=mel, cache_source=source)


class CosyVoice2Stream(ChunkGridStream):
    """Streaming session of :class:`CosyVoice2Vocoder`."""

    def __init__(self, vocoder: CosyVoice2Vocoder) -> None:
        super().__init__(LOOKAHEAD_TOKENS, COSYVOICE2_TOKENS.codebook_size, vocoder.device)
        self.vocoder = vocoder
        # The last frames of the chunk before, with their excitation and samples; nothing before the first chunk.
        self.mel = torch.zeros(1, NUM_MELS, 0, device=self.device)
        self.source = torch.zeros(1, 1, 0, device=self.device)
        self.held = torch.zeros(0, device=self.device)

    def chunk_end(self, begin: int) -> int:
        """Give the end of the chunk that begins at a token of the grid."""
        hop = self.vocoder.first_chunk_tokens
        end, largest = self.vocoder.first_chunk_end, hop * 2**NUM_GROWTHS
        while end <= begin:
            hop = min(2 * hop, largest)
            end += hop
        return end

    def voice(self, begin: int, end: int, num_seen: int) -> Tensor:
        """Decode a chunk; see :meth:`ChunkGridStream.voice`."""
        is_last = num_seen == end
        frames = self.vocoder.decode_mel(self.tokens[:num_seen], is_last)
        per_token = self.vocoder.samples_per_token // MEL_HOP_SAMPLES
        mel = torch.cat([self.mel, frames[:, :, begin * per_token :]], dim=2)
        samples, source = self.vocoder.speak(mel, self.source, begin)
        speech = samples[0].clone()
        faded = len(self.held)
        # Raised cosines add up to 1; the Hamming window of CosyVoice adds up to 1.08.
        position = (torch.arange(faded, device=self.device) + 0.5) / max(1, faded)
        speech[:faded] = torch.lerp(self.held, speech[:faded], 0.5 - 0.5 * torch.cos(math.pi * position))
        if is_last:
            return speech
        self.mel, self.source = mel[:, :, -CACHED_FRAMES:], source[:, :, -CACHED_SAMPLES:].clone()
        self.held = speech[-CACHED_SAMPLES:]
        return speech[:-CACHED_SAMPLES]
