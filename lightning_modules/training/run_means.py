"""Means over a validation set, by run and tag, over all devices."""

from torch import Tensor, nn
from torchmetrics import MeanMetric


class RunMeans(nn.Module):
    """Weighted means of named values for each of several runs, such as the talkers that train side by side.

    Args:
        run_names: The runs.
        tags: What is averaged in each of them.
    """

    def __init__(self, run_names: list[str], tags: tuple[str, ...]) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({name: nn.ModuleDict({tag: MeanMetric() for tag in tags}) for name in run_names})

    def update(self, run_name: str, tag: str, mean: Tensor, count: Tensor | int) -> None:
        """Take in a mean, and over how many things it is one."""
        self.metrics[run_name][tag].update(mean, count)  # type: ignore[index]

    def pop(self) -> dict[str, dict[str, Tensor]]:
        """Give the means by run and tag, and start from nothing; called on all devices."""
        means: dict[str, dict[str, Tensor]] = {}
        for name, own in self.metrics.items():
            means[name] = {tag: metric.compute() for tag, metric in own.items()}  # type: ignore[operator]
            for metric in own.values():  # type: ignore[operator]
                metric.reset()
        return means
