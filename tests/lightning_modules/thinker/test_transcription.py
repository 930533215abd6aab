"""Transcription at the adaptor: equal with and without the language model, per row, and learnable."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.thinker.transcription import best_transcripts, transcription_loss
from tests.lightning_modules.thinker.tiny import REPLIES

Speech = tuple[torch.Tensor, torch.Tensor]
TRANSCRIPTS = ["What is Paris?", "Wake me at seven.", "Is it so?"]


def test_the_loss_of_a_single_token_sums_its_alignments() -> None:
    logits = torch.randn(1, 3, 5)
    p = logits.softmax(dim=-1)[0]
    blank, token = 0, 2
    alignments = [(blank, blank, token), (blank, token, blank), (token, blank, blank), (blank, token, token)]
    alignments += [(token, token, blank), (token, token, token)]
    expected = -torch.stack([p[0, a] * p[1, b] * p[2, c] for a, b, c in alignments]).sum().log()
    torch.testing.assert_close(transcription_loss(logits, torch.tensor([3]), [[token]], blank), expected)


def test_repeats_merge_unless_a_blank_separates_them() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2], [3, 0, 0, 4, 4, 4]])
    logits = torch.nn.functional.one_hot(path, 5).float()
    assert best_transcripts(logits, torch.tensor([6, 4]), blank_id=0) == [[1, 1, 2], [3, 4]]


def test_a_row_that_cannot_be_aligned_counts_as_zero() -> None:
    logits = torch.randn(2, 2, 5, requires_grad=True)
    with pytest.warns(UserWarning, match="1 of 2 transcripts have more tokens"):
        loss = transcription_loss(logits, torch.tensor([2, 2]), [[1, 2, 3], [1]], 0)
    loss.backward()
    assert logits.grad is not None and not logits.grad[0].any() and logits.grad[1].any()


def test_listening_gives_the_transcript_loss_of_a_whole_pass(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    assert thinker(*speech, REPLIES).transcript_loss is None
    transcripts = ["Yes.", "No.", "I will."]
    output = thinker(*speech, REPLIES, transcripts)
    torch.testing.assert_close(thinker.listen(*speech, transcripts), output.transcript_loss)


def test_a_batched_row_equals_the_single_row(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    waveform, lengths = speech
    transcripts = ["Yes.", "No.", "I will."]
    rows = [
        thinker.listen(waveform[row : row + 1, : lengths[row]], lengths[row : row + 1], [transcripts[row]])
        for row in range(3)
    ]
    torch.testing.assert_close(thinker.listen(waveform, lengths, transcripts), torch.stack(rows).mean())


def test_it_learns_to_transcribe(thinker: Thinker, speech: Speech) -> None:
    transcripts = ["Yes.", "Paris.", "I will wake you."]
    optimizer = torch.optim.AdamW(thinker.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        thinker.listen(*speech, transcripts).backward()
        optimizer.step()
    assert thinker.eval().transcribe(*speech) == transcripts


def test_bad_transcripts_and_tokenizers_are_refused(
    thinker: Thinker, speech: Speech, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="transcript '' is empty; every example needs a transcript text"):
        thinker.listen(*speech, ["Yes.", "", "No."])
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no pad_token, which transcription needs as its blank"):
        _ = ChatPrompt(tokenizer).blank_id
