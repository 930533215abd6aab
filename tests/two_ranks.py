"""Two processes that train together on a CPU, as a launcher would start them."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

TIMEOUT_S = 90.0


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in two processes, each with its rank and the arguments; give what they return, in order.

    Raises:
        AssertionError: One raised, with its traceback, or they did not end in time: one waits for the other.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: Any = context.Queue()
    processes = [context.Process(target=_work, args=(function, rank, port, answers, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < 2:
            rank, result, failure = answers.get(timeout=TIMEOUT_S)
            assert failure is None, f"rank {rank}: {failure}"
            results[rank] = torch.load(io.BytesIO(result), weights_only=False)
    except queue.Empty:
        raise AssertionError(f"rank {[rank for rank in range(2) if rank not in results]} did not answer") from None
    finally:
        for process in processes:
            process.join(0 if len(results) < 2 else 10)
            process.kill()
    return [results[0], results[1]]


def _work(function: Callable[..., Any], rank: int, port: int, answers: Any, arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    places = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ.update({name: str(value) for name, value in {**names, **places}.items()})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        whole = io.BytesIO()  # bytes: shared tensors would go with this process
        torch.save(function(rank, *arguments), whole)
        answers.put((rank, whole.getvalue(), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))


def make_trainer(num_ranks: int = 2, **settings: Any) -> L.Trainer:
    """Make a trainer of one process, or of two."""
    return L.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        **{
            "strategy": "ddp" if num_ranks > 1 else "auto",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            **settings,
        },
    )
