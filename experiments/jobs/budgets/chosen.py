"""Talkers with the weights that were chosen for them."""

from pathlib import Path
from typing import Any

from torch import nn

from experiments.engine.artifacts import is_planning, load_trained, read_checkpoint
from experiments.jobs.budgets.choices import read_choice
from lightning_modules.errors import UserError
from lightning_modules.pretrained.matching_weights import refuse_other_weights


def load_chosen(choice: str, trial: str, talker: str) -> Any:
    """Build a talker as a trial trained it, and load the weights that a :class:`RateChoice` chose.

    Args:
        choice: Run directory of that job.
        trial: Run directory of any of its trials, beside it or elsewhere.
        talker: Name.

    Returns:
        The talker, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: If choice or weights are not there.
        UserError: If nothing was chosen for the talker, or weights do not fit.
    """
    built = load_trained(Path(trial), f"talkers.{talker}")
    if is_planning():
        return built
    found = read_choice(Path(choice))["talkers"]
    if talker not in found:
        raise UserError(f"{choice} chose nothing for {talker!r}; there are {', '.join(found)}")
    load_talker_weights(built, Path(trial).parent / found[talker]["weights"], talker)
    return built.eval()


def load_talker_weights(talker: nn.Module, file: Path, name: str) -> None:
    """Load the weights of one talker from a checkpoint of a SpeechLLM.

    Args:
        talker: Gets them.
        file: The checkpoint.
        name: The talker's name there.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If the weights are not those of the talker.
    """
    if not file.exists():
        raise FileNotFoundError(f"there are no kept weights {file}; train that trial again with --force")
    prefix = f"talkers.{name}."
    state = read_checkpoint(file, prefix)["state_dict"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    expected = {key: value.shape for key, value in talker.state_dict().items()}
    found = {key: value.shape for key, value in weights.items()}
    refuse_other_weights(expected, found, f"{file} does not fit the talker {name}", "give trials of one kind of talker")
    talker.load_state_dict(weights)
