"""Many spoken replies at once, for a test that wants their words and not their times."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.inference.spoken_reply import SpokenReply, TextReading, ThinkerText
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.decoding.static.batch import BatchedReply
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.vocoder.base import Vocoder


@torch.no_grad()
def speak_batch(
    texts: Sequence[ThinkerText], talker: Talker, vocoder: Vocoder, decoding: Decoding, max_blocks: int
) -> list[SpokenReply]:
    """Speak texts side by side: what each reply says is what it says alone.

    Args:
        texts: What the thinker answers to each query; written to their ends.
        talker: Speaks it.
        vocoder: Turns speech tokens into samples.
        decoding: How it does that.
        max_blocks: Where speech is cut off.

    Returns:
        Replies without times.
    """
    replies = []
    for text, spoken in zip(texts, _decode(texts, talker, decoding, max_blocks), strict=True):
        reply = SpokenReply(text.decode(), spoken.tokens.cpu(), num_forwards=spoken.num_forwards, ended=spoken.ended)
        reply.waveform = vocoder(spoken.tokens).float().cpu()
        if spoken.order is not None:
            reply.order = spoken.order.cpu()
        if spoken.draft is not None:
            reply.draft = spoken.draft.cpu()
        replies.append(reply)
    return replies


def _decode(texts: Sequence[ThinkerText], talker: Talker, decoding: Decoding, max_blocks: int) -> list[BatchedReply]:
    written = [list(TextReading(text)) for text in texts]
    some = next((states[0] for states in written if states), None)
    if some is None:  # nobody knows how wide a state is
        return [BatchedReply.of(talker.stream(states, max_blocks, decoding)) for states in written]
    hidden, embedding = (
        pad_sequence([torch.stack(ones) if ones else like.new_zeros(0, len(like)) for ones in rows], batch_first=True)
        for like, rows in (
            (some.hidden, [[state.hidden for state in states] for states in written]),
            (some.embedding, [[state.embedding for state in states] for states in written]),
        )
    )
    lengths = torch.tensor([len(states) for states in written])
    return talker.decode_batch(TextStates(hidden, embedding, lengths), max_blocks, decoding)
