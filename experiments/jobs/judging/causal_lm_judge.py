"""A judge on this machine: a causal language model in a folder."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from experiments.jobs.decoding.machine import find_device
from experiments.jobs.judging.judge import Judge, JudgeRequest
from lightning_modules.errors import UserError

WEIGHTS = "*.safetensors"
# Enough to tell weights apart without reading all of them.
_SAMPLED_BYTES = 2**20


class CausalLmJudge(Judge):
    """Says the verdict that a language model finds most likely behind the request.

    So it always gives one, unless the request is longer than what it reads.

    Args:
        path: A folder that ``save_pretrained`` has written, with its tokenizer.
        bfloat16: Hold the weights in bfloat16, in half the memory.
    """

    def __init__(self, path: Path, bfloat16: bool = True) -> None:
        self.path, self.bfloat16 = Path(path), bfloat16

    def describe(self) -> dict[str, Any]:
        """See :class:`Judge`; the weights are told apart by name, size, and their first and last megabyte."""
        files = sorted(self.path.glob(WEIGHTS))
        if not files or not (self.path / "config.json").is_file():
            raise FileNotFoundError(
                f"{self.path}: holds no config.json with {WEIGHTS} weights; give a folder that save_pretrained wrote"
            )
        digest = hashlib.sha256()
        for file in (self.path / "config.json", *files):
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as content:
                digest.update(content.read(_SAMPLED_BYTES))
                content.seek(max(0, size - _SAMPLED_BYTES))
                digest.update(content.read())
        return {
            "judge": "causal language model, most likely verdict",
            "name": self.path.resolve().name,
            "weights": digest.hexdigest()[:16],
            "dtype": "bfloat16" if self.bfloat16 else "float32",
        }

    @torch.no_grad()
    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[JudgeRequest, str]]:
        """See :class:`Judge`; one request at a time."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=torch.bfloat16 if self.bfloat16 else torch.float32, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be loaded as a causal language model ({error})") from error
        device = find_device()
        model.eval().to(device)
        max_positions = getattr(model.config, "max_position_embeddings", None)
        for request in requests:
            rows, num_prompt = _tokenize(tokenizer, request)
            longest = max(map(len, rows))
            if max_positions is not None and longest > max_positions:
                yield request, f"no verdict: a request of {longest} tokens, and the judge reads {max_positions}"
                continue
            scores = [_log_likelihood(model, torch.tensor([row], device=device), num_prompt) for row in rows]
            yield request, request.verdicts[max(range(len(scores)), key=scores.__getitem__)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, request: JudgeRequest) -> tuple[list[list[int]], int]:
    """Give prompt and verdict as token ids, a row for each verdict, and the length of the prompt."""
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.text}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        space = ""
    else:
        prompt = tokenizer(f"{request.system}\n\n{request.text}\n\nVerdict:")["input_ids"]
        space = " "
    verdicts = [tokenizer(space + one, add_special_tokens=False)["input_ids"] for one in request.verdicts]
    return [[*prompt, *verdict] for verdict in verdicts], len(prompt)


def _log_likelihood(model: Any, row: torch.Tensor, num_prompt: int) -> float:
    """Give the log-likelihood of what follows the prompt in a row ``(1, L)``."""
    logits = model(row).logits[0, num_prompt - 1 : -1].float()
    return float(logits.log_softmax(dim=-1).gather(1, row[0, num_prompt:, None]).sum())
