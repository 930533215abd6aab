"""A trained codec whose mel decoder learns further voices, while its tokens stay as they are."""

from lightning_modules.speech_codec import SpeechCodec


class AdaptedCodec(SpeechCodec):
    """A codec with the encoder and the quantiser of a trained one, frozen, and with its mel decoder, trained on.

    The decoder of a codec that heard one voice gives every speech that voice, though the tokens tell voices apart. Only
    the decoder has to learn it, from speech of all voices that are to be told apart, the old ones included. Talkers
    keep working: what they say is the same tokens.

    Args:
        codec: The trained codec.
        crop_s: Length of the random training crops in seconds; a multiple of 0.04.
        seed: Seed of the crops, which are a pure function of seed, global step and rank.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up before the cosine decay.

    Raises:
        UserError: If a constructor value is out of its range.
    """

    def __init__(
        self,
        codec: SpeechCodec,
        crop_s: float = 1.6,
        seed: int = 0,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__(
            codec.levels,
            codec.channels,
            codec.lookahead_tokens,
            crop_s=crop_s,
            seed=seed,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
        )
        self.encoder, self.quantizer, self.decoder = codec.encoder, codec.quantizer, codec.decoder
        self.encoder.requires_grad_(False)
        self.quantizer.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.train()  # what was loaded is in evaluation mode
