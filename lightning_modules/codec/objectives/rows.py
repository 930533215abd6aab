"""Which rows of a batch an objective looks at: each row costs another pass of the encoder."""

import torch


def draw_rows(num_rows: int, max_rows: int | None, generator: torch.Generator) -> list[int]:
    """Draw different rows of a batch.

    Args:
        num_rows: Rows of the batch.
        max_rows: How many are drawn; all if None or more than there are.
        generator: On the host.

    Returns:
        Their indices in rising order.
    """
    return sorted(torch.randperm(num_rows, generator=generator)[:max_rows].tolist())
