"""Logits are computed where a loss or a decoding needs them, and nowhere else, a piece at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_modules.thinker.logits import score_in_pieces
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.test_speech_llm import fit, make_batch, make_llm
from tests.lightning_modules.thinker.tiny import REPLIES

Speech = tuple[Tensor, Tensor]
QUERIES = ["Yes.", "No.", "I will."]


@contextmanager
def rows_of_head(thinker: Thinker) -> Iterator[list[int]]:
    """Count the hidden states that the output head is given."""
    found: list[int] = []
    head = thinker.language_model.causal_lm.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, args, output: found.append(output.numel() // output.shape[-1]))
    yield found
    hook.remove()


def test_the_head_sees_targets_only(thinker: Thinker, speech: Speech) -> None:
    with rows_of_head(thinker) as rows:
        output = thinker(*speech, REPLIES)
    assert sum(rows) == int(output.num_scored_tokens) == sum(output.lengths.tolist()) + 3
    assert sum(rows) < output.token_ids.numel() + 3, "shorter replies have no rows for their padding"
    with rows_of_head(thinker) as rows:
        thinker.states(*speech, REPLIES)
    assert rows == []
    with rows_of_head(thinker) as rows:
        thinker(*speech, REPLIES, QUERIES)
    frames = thinker.speech_encoder(*speech)
    _, lengths = thinker.adaptor(*frames)
    assert sum(rows) == int(output.num_scored_tokens) + 3 * int(lengths.max())
    with rows_of_head(thinker) as rows:
        assert len(list(thinker.stream(thinker.encode(speech[0][0]), 5))) == 5
    assert rows == [1] * 5


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_talkers_and_unweighted_losses_need_no_logits() -> None:
    batch = make_batch(0)
    llm = make_llm("ntp", "mdm")
    with rows_of_head(llm.thinker) as rows:
        fit(llm, 1)
    assert rows == []
    batch.transcripts = ["a", "b", "a"]
    with rows_of_head(llm.thinker) as rows:
        ThinkerObjective(reply=1.0, transcript=0.0)(llm.thinker, batch)
    assert len(rows) == 1 and rows[0] < 3 * 10


def test_states_are_those_of_a_scored_pass(thinker: Thinker, speech: Speech) -> None:
    states, output = thinker.states(*speech, REPLIES), thinker(*speech, REPLIES)
    for name, value in vars(states).items():
        torch.testing.assert_close(getattr(output, name), value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("num_rows", [1, 3, 7, 8, 100])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole_in_less_memory(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vocab_size, hidden = 50, torch.randn(8, 6, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab_size, (8,), generator=generator)
    head = nn.Linear(6, vocab_size)
    logits = head(hidden)
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    gradients = torch.autograd.grad(expected, [hidden, *head.parameters()])
    saved: list[int] = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor):
        nll, is_right = score_in_pieces(head, hidden, targets, vocab_size, piece_bytes=4 * vocab_size * num_rows)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(torch.autograd.grad(nll, [hidden, *head.parameters()]), gradients)
    assert torch.equal(is_right, logits.argmax(dim=-1) == targets)
    if num_rows < 8:
        assert max(saved) <= 6 * vocab_size, "only what goes in is kept, and the weight"
    else:
        assert max(saved) >= 8 * vocab_size
