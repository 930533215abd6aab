"""What the thinker of a comparison writes to its test queries, kept to be spoken many times."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.engine.artifacts import Config, read_config
from experiments.engine.configuration.builder import build
from experiments.jobs.speaking.speaking_model import SpeakingModel, find_source
from lightning_modules.dialogue import History
from lightning_modules.errors import UserError
from lightning_modules.inference.spoken_reply import TextReading
from lightning_modules.thinker.thinker import ThinkerToken


@dataclass(frozen=True)
class WrittenText:
    """What the thinker answers to one query.

    Attributes:
        query_id: Of the query's dialogue.
        text: The reply in words, under the first adapter.
        states: Its tokens under each adapter; None stands for the base.
    """

    query_id: str
    text: str
    states: dict[str | None, list[ThinkerToken]]


def read_comparison(path: Path) -> tuple[Path, Config]:
    """Find a comparison, and read its configuration; nothing is loaded.

    Args:
        path: Its run, or the folder of an experiment's runs, of which the newest comparison is taken.

    Returns:
        The run directory and its configuration.

    Raises:
        FileNotFoundError: If there is no run.
        UserError: If it is no comparison's.
    """
    source = find_source(path)
    config = read_config(source) if (source / "config.yaml").is_file() else {}
    arguments = (config.get("module") or {}).get("init_args") or {}
    missing = [name for name, one in (("decodings", arguments), ("datamodule", config)) if not one.get(name)]
    if missing:
        raise UserError(
            f"run: {source} is no comparison, it has no {' and no '.join(missing)}; give one like "
            "runs/quickstart/comparison-1a2b3c4d"
        )
    return source, config


def write_texts(
    model: SpeakingModel, config: Config, num_queries: int, adapters: Collection[str | None]
) -> list[WrittenText]:
    """Let the thinker answer the first test queries of a comparison, once under each adapter.

    Args:
        model: The comparison, loaded, where it runs and in the precision that is on.
        config: Its configuration.
        num_queries: Queries, at most.
        adapters: LoRA adapters; None stands for the base.

    Returns:
        One text per query.

    Raises:
        UserError: If there is no test query.
    """
    texts = []
    queries = _test_queries(config, num_queries, model.llm.device)
    for query_id, query, history in tqdm(queries, "texts", num_queries, unit="text"):
        states: dict[str | None, list[ThinkerToken]] = {}
        words = []
        for adapter in adapters:
            text = model.responder.write_text(query, adapter, history)
            states[adapter] = list(TextReading(text))
            words.append(text.decode())
        texts.append(WrittenText(query_id, words[0], states))
    if not texts:
        raise UserError("run: its datamodule has no test query; give a comparison whose corpus has a test set")
    return texts


def _test_queries(
    config: Config, num_queries: int, device: torch.device
) -> Iterator[tuple[str, Tensor, History | None]]:
    """Give the id of each query, the query, ``(S,) float32``, and what was said before it."""
    data: SpokenDialogueDataModule = build(config["datamodule"], "datamodule")
    data.setup("test")
    num_given = 0
    for batch in data.test_dataloader():
        batch = batch.to(device).to_float()
        for query_id, (query, history) in zip(batch.ids, batch.queries(), strict=True):
            if num_given == num_queries:
                return
            yield query_id, query, history
            num_given += 1
