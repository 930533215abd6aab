"""The adaptor stacks five frames, and padding does not leak into a row."""

import torch

from lightning_modules.thinker.adaptor import Adaptor


def test_lengths_are_a_fifth_rounded_up() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    embeddings, lengths = adaptor(torch.randn(4, 11, 4), torch.tensor([1, 5, 6, 11]))
    assert embeddings.shape == (4, 3, 6)
    assert lengths.tolist() == [1, 1, 2, 3]


def test_a_batched_row_equals_the_single_row() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    frames = torch.randn(2, 13, 4)
    embeddings, _ = adaptor(frames, torch.tensor([13, 7]))
    single, lengths = adaptor(frames[1:, :7], torch.tensor([7]))
    torch.testing.assert_close(embeddings[1, : lengths[0]], single[0])


def test_an_embedding_hears_its_own_five_frames_only() -> None:
    adaptor = Adaptor(input_size=4, output_size=6, hidden_size=8)
    frames = torch.randn(1, 15, 4)
    changed = frames.clone()
    changed[0, 5:10] += 1.0
    lengths = torch.tensor([15])
    differs = (adaptor(frames, lengths)[0] != adaptor(changed, lengths)[0]).any(dim=-1)
    assert differs.tolist() == [[False, True, False]]
