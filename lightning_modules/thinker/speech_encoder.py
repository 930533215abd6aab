"""Speech encoder: waveform to hidden frames at 50 Hz, by the encoder of Whisper."""

from pathlib import Path

from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperModel

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_below_one, require_divisible, require_positive
from lightning_modules.pretrained.loading import (
    check_attention,
    dtype_from_name,
    keep_layer_inputs_only,
    load_pretrained,
    read_config,
)
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.talker.network.transfers import is_within
from lightning_modules.thinker.initialization import initialize_by_fan_in
from lightning_modules.thinker.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ, WhisperLogMel

FRAME_SAMPLES = 2 * HOP_SAMPLES
_MEL_CONTEXT_FRAMES = 4  # silence kept after the longest row: two convolutions and one analysis window look ahead


class SpeechEncoder(nn.Module):
    """Whisper's encoder, for rows of any length.

    With ``pad_to_s: null`` the rows of a batch are padded to the longest one, and the attention does not see padding:
    a row's frames do not depend on its neighbours. With ``pad_to_s: 30`` every row is padded to 30 s with silence that
    the attention sees, as in Whisper's training; the frames of the padding are cut off afterwards.

    Reference: arXiv 2212.04356.

    Args:
        encoder: The transformers module.
        pad_to_s: Seconds of audio to pad each row to, or None to pad to the longest row of the batch.

    Raises:
        UserError: If ``pad_to_s`` is not positive, or longer than the positions of the encoder.
    """

    def __init__(self, encoder: WhisperEncoder, pad_to_s: float | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_mel = WhisperLogMel(encoder.config.num_mel_bins)
        self.pad_to_samples: int | None = None
        require_positive(pad_to_s=pad_to_s)
        if pad_to_s is not None:
            self.pad_to_samples = FRAME_SAMPLES * round(pad_to_s * SAMPLE_RATE_HZ / FRAME_SAMPLES)
        if self.pad_to_samples is not None and self.pad_to_samples > self.max_samples:
            raise UserError(
                f"pad_to_s is {pad_to_s} s, but the speech encoder has positions for "
                f"{self.max_samples / SAMPLE_RATE_HZ} s; lower pad_to_s or raise max_positions."
            )

    @classmethod
    def from_config(
        cls,
        width: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        feed_forward_width: int = 768,
        num_mel_bins: int = 80,
        max_positions: int = 1500,
        dropout: float = 0.0,
        pad_to_s: float | None = None,
        attention: str = "sdpa",
    ) -> "SpeechEncoder":
        """Build an untrained encoder.

        Args:
            width: Hidden size D of the frames.
            num_layers: Transformer layers.
            num_heads: Attention heads, which divide ``width``.
            feed_forward_width: Inner size of the feed-forward layers.
            num_mel_bins: Mel bands of the input features.
            max_positions: Longest input in frames of 20 ms.
            dropout: Dropout after the embedding and inside each layer.
            pad_to_s: See the class.
            attention: Implementation of attention in transformers, "sdpa", "eager" or another of its names. Under
                bfloat16 autocast on a CPU a step with "eager" takes a quarter less time.

        Raises:
            UserError: If a number is out of range, or the heads do not divide the width.
        """
        require_at_least(
            1,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_width=feed_forward_width,
            num_mel_bins=num_mel_bins,
            max_positions=max_positions,
        )
        require_at_least(4, width=width)  # the sinusoids of the positions need two frequencies
        require_divisible("width", width, "num_heads", num_heads)
        if width % 2:
            raise UserError(f"width is {width}; give an even number, for a sine and a cosine of each frequency")
        require_below_one(dropout=dropout)
        check_attention(attention)
        config = WhisperConfig(
            d_model=width,
            encoder_layers=num_layers,
            encoder_attention_heads=num_heads,
            encoder_ffn_dim=feed_forward_width,
            num_mel_bins=num_mel_bins,
            max_source_positions=max_positions,
            dropout=dropout,
        )
        encoder = WhisperEncoder(config)
        encoder.set_attn_implementation(attention)
        outputs = [linear for layer in encoder.layers for linear in (layer.self_attn.out_proj, layer.fc2)]
        initialize_by_fan_in(encoder, residual_outputs=outputs)
        return cls(encoder, pad_to_s)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str = "float32",
        pad_to_s: float | None = 30.0,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
    ) -> "SpeechEncoder":
        """Load the encoder of a pretrained Whisper.

        Args:
            path: A directory written by ``save_pretrained`` of a whole Whisper or of its encoder alone, or a published
                name ("openai/whisper-large-v3").
            dtype: Dtype of the weights, "float32", "bfloat16" or "float16".
            pad_to_s: See the class.
            attention: Implementation of attention in transformers.
            gradient_checkpointing: Keep only the input of each layer in training, and compute the layer again in the
                backward pass.

        Raises:
            FileNotFoundError: If nothing can be loaded from ``path``.
            UserError: If it is no Whisper, or ``pad_to_s`` does not fit its positions.
        """
        torch_dtype = dtype_from_name(dtype)
        check_attention(attention)
        config = read_config(path, "speech encoder")
        if not isinstance(config, WhisperConfig):
            raise UserError(f"speech encoder: {str(path)!r} holds a {config.model_type} model; give a Whisper.")
        is_encoder = config.architectures == [WhisperEncoder.__name__]
        kind = WhisperEncoder if is_encoder else WhisperModel
        settings = {"dtype": torch_dtype, "attn_implementation": attention}
        if is_on_meta():
            whisper = kind._from_config(config, **settings)
        else:
            whisper = load_pretrained(lambda name: kind.from_pretrained(name, **settings), path, "speech encoder")
        encoder = whisper if is_encoder else whisper.encoder
        if gradient_checkpointing:
            keep_layer_inputs_only(encoder)
        return cls(encoder, pad_to_s)

    @property
    def pad_to_s(self) -> float | None:
        """Seconds that each row is padded to; None for the longest row of the batch."""
        return None if self.pad_to_samples is None else self.pad_to_samples / SAMPLE_RATE_HZ

    @property
    def output_size(self) -> int:
        """Width D of a frame."""
        return int(self.encoder.config.d_model)

    @property
    def max_samples(self) -> int:
        """Longest input, in samples of 16 kHz."""
        return FRAME_SAMPLES * int(self.encoder.config.max_source_positions)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode speech.

        Args:
            waveform: ``(B, S) float``, 16 kHz, in [-1, 1]; what lies past a row's length is ignored.
            lengths: ``(B,) int64``, samples of each row; on the host, or it waits for them.

        Returns:
            Frames ``(B, F, D)`` at 50 Hz, zero past a row's length, and their numbers ``(B,) int64`` on the host,
            ``ceil(samples / 320)``.

        Raises:
            UserError: If a row is empty or longer than the encoder's positions.
        """
        lengths = lengths.cpu()
        self._check_lengths(lengths, waveform.shape[1])
        frame_lengths = (lengths + FRAME_SAMPLES - 1) // FRAME_SAMPLES
        num_frames = int(frame_lengths.max())
        num_samples = self.pad_to_samples or FRAME_SAMPLES * num_frames + _MEL_CONTEXT_FRAMES * HOP_SAMPLES
        is_speech = is_within(lengths, waveform.shape[1], waveform.device)
        waveform = waveform.masked_fill(~is_speech, 0.0)[:, : int(lengths.max())]
        waveform = nn.functional.pad(waveform, (0, num_samples - waveform.shape[1]))
        log_mel = self.log_mel(waveform)
        if self.pad_to_samples is None:
            is_of_one_length = int(frame_lengths.min()) == num_frames
            frames = self.encode_log_mel(log_mel, None if is_of_one_length else frame_lengths, num_frames)
        else:
            frames = self.encode_log_mel(log_mel, None, None)[:, :num_frames]
        is_frame = is_within(frame_lengths, num_frames, frames.device)
        return frames * is_frame[..., None].to(frames.dtype), frame_lengths

    def encode_log_mel(self, log_mel: Tensor, frame_lengths: Tensor | None, num_frames: int | None) -> Tensor:
        """Run the convolutions and the transformer.

        Args:
            log_mel: ``(B, num_mel_bins, M)`` features at 100 Hz.
            frame_lengths: ``(B,) int64``, frames of 20 ms that the attention may see; None for all, and much faster.
            num_frames: Frames of 20 ms to keep after the convolutions; None for all.

        Returns:
            ``(B, F, D)`` frames.
        """
        encoder = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(log_mel.to(encoder.conv1.weight.dtype)))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)[:, :num_frames]
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
        mask = None
        if frame_lengths is not None:
            is_frame = is_within(frame_lengths, hidden.shape[1], hidden.device)
            # the host knows that some rows are shorter, and need not wait for the mask to say so
            mask = create_bidirectional_mask(encoder.config, hidden, is_frame, allow_is_bidirectional_skip=False)
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
        return encoder.layer_norm(hidden)

    def _check_lengths(self, lengths: Tensor, num_samples: int) -> None:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1:
            raise UserError(f"query {int(lengths.argmin())} of the batch holds no samples; remove empty audio files.")
        assert longest <= num_samples, "a length exceeds the waveform"
        limit = self.pad_to_samples or self.max_samples
        if longest > limit:
            raise UserError(
                f"query {int(lengths.argmax())} of the batch lasts {longest / SAMPLE_RATE_HZ:.2f} s, the speech "
                f"encoder takes up to {limit / SAMPLE_RATE_HZ:.2f} s; leave out longer queries, or raise "
                "max_positions or pad_to_s."
            )
