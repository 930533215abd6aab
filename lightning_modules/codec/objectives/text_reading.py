"""Codes that tell the words: a small network reads the transcript off them."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.acoustics.character_loss import character_loss
from lightning_modules.acoustics.conv_blocks import ResidualConv, Upsample
from lightning_modules.acoustics.log_mel import zero_beyond
from lightning_modules.codec.objectives.ramp import Ramp
from lightning_modules.errors import UserError
from lightning_modules.evaluation.text_normalization import ALPHABET, normalize_text
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.losses import LossTerm


class TextReading(nn.Module):
    """Reads characters off quantised codes by connectionist temporal classification.

    Its gradient reaches the encoder through the codes, so that these spend their levels on what tells sounds of speech
    apart. It reads three codes on each side only: a wider view would guess words in place of hearing them.

    Args:
        num_coordinates: Coordinates of a code.
        ramp: Its weight in the loss.
        channels: Width of the network.
        frames_per_code: Character frames for each code; a reply has more characters than codes.
        max_rows: Replies of a batch that are read, drawn at random; all if None.

    Raises:
        UserError: If a number is below 1, or the weight is not there from the first step on.

    Reference: Connectionist Temporal Classification, ICML 2006; CosyVoice, arXiv 2407.05407 (a tokenizer that is
    trained to recognise speech).
    """

    def __init__(
        self,
        num_coordinates: int,
        ramp: Ramp,
        channels: int = 128,
        frames_per_code: int = 2,
        max_rows: int | None = None,
    ) -> None:
        super().__init__()
        require_at_least(
            1,
            num_coordinates=num_coordinates,
            channels=channels,
            frames_per_code=frames_per_code,
            max_rows=max_rows,
        )
        if ramp.start_step:
            raise UserError(
                f"start_step of the text reading is {ramp.start_step}; give 0, since its network has to learn first, "
                "and let num_steps grow instead"
            )
        self.num_coordinates, self.ramp, self.frames_per_code = num_coordinates, ramp, frames_per_code
        self.max_rows = max_rows
        self.layers = nn.Sequential(
            nn.Conv1d(num_coordinates, channels, 3, padding=1),
            ResidualConv(channels, 3),
            ResidualConv(channels, 3),
            nn.GELU(),
            Upsample(channels, channels, frames_per_code),
            nn.GELU(),
            nn.Conv1d(channels, 1 + len(ALPHABET), 1),
        )
        self._ids = {character: index + 1 for index, character in enumerate(ALPHABET)}

    def forward(self, codes: Tensor, lengths: Tensor, texts: Sequence[str], step: int) -> LossTerm:
        """Compute how badly the texts are read.

        Args:
            codes: ``(B, T, D) float``, with a gradient.
            lengths: ``(B,) int64`` codes of each row.
            texts: B texts, which are normalised here; one that does not fit into its frames counts as 0.
            step: The global step, which tells the weight.

        Returns:
            CTC loss in nats per character.
        """
        logits = self.layers(zero_beyond(codes, lengths).transpose(1, 2)).float()
        targets = [[self._ids[character] for character in normalize_text(text)] for text in texts]
        log_probs = logits.log_softmax(1).transpose(1, 2)
        mean, num_characters = character_loss(log_probs, self.frames_per_code * lengths.cpu(), targets)
        return LossTerm(mean, num_characters, self.ramp.at(step))
