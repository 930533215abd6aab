"""The README of an export: what it holds, how to read it, and what was measured of it."""

from collections.abc import Mapping
from pathlib import Path

from experiments.engine.artifacts import read_config
from experiments.engine.environment import describe_environment
from lightning_modules.speech_llm import SpeechLLM

FIGURES = "summary.txt"


def describe_export(
    run: Path,
    llm: SpeechLLM,
    adapter: str | None,
    is_merged: bool,
    differences: Mapping[str, float],
    tolerance: float,
) -> str:
    """Write the card of an export.

    Args:
        run: The run that it was made from.
        llm: What was exported.
        adapter: The LoRA adapter that belongs to it; None for none.
        is_merged: Whether the adapter was added to the weights.
        differences: Largest difference between outputs of merged and unmerged weights, as shares of their range.
        tolerance: What these may be.

    Returns:
        Markdown.
    """
    config = read_config(run)
    talkers = {name: sum(one.numel() for one in talker.parameters()) for name, talker in llm.talkers.items()}
    language_model = llm.thinker.language_model.causal_lm
    assert llm.vocoder is not None
    rows = {
        "made from": f"run {run.name}: {config.get('description') or 'no description'}",
        "commit": str(describe_environment()["commit"]),
        "language model": f"{type(language_model).__name__}, {language_model.num_parameters():,} parameters",
        "talkers": ", ".join(f"{name} ({count:,} parameters)" for name, count in talkers.items()),
        "vocoder": f"{type(llm.vocoder).__name__}, {llm.vocoder.sample_rate} Hz",
        "adapter": "none" if adapter is None else f"{adapter}, {'merged' if is_merged else 'apart, in adapters/'}",
    }
    parts = ["# A speech LLM with its talkers", "", "| | |", "|---|---|"]
    parts += [f"| {name} | {value} |" for name, value in rows.items()]
    parts += ["", "## How to read it", "", _usage(adapter if not is_merged else None)]
    if differences:
        allowed = f"{tolerance:g} is allowed"
        parts += [f"Merged against unmerged weights, largest difference as a share of the range ({allowed}):", ""]
        for name, value in differences.items():
            parts.append(f"* {name}: {value:.1e}{' **more than allowed**' if value > tolerance else ''}")
        parts.append("")
    figures = run / FIGURES
    parts += ["## Figures", ""]
    if figures.is_file():
        parts += ["```text", figures.read_text(encoding="utf-8").rstrip("\n"), "```", ""]
    else:
        parts += ["The run that this was made from has measured none.", ""]
    parts += ["The weights are under the licences of the models that they were made from.", ""]
    return "\n".join(parts)


def _usage(adapter: str | None) -> str:
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'language_model = AutoModelForCausalLM.from_pretrained("thinker/language_model")',
        'tokenizer = AutoTokenizer.from_pretrained("thinker/language_model")',
    ]
    if adapter is not None:
        folder = f"adapters/{adapter}/thinker.language_model"
        lines += [
            "from peft import PeftModel",
            f'language_model = PeftModel.from_pretrained(language_model, "{folder}")',
        ]
    lines += [
        "",
        "# the whole system, in a checkout of the repository that made it",
        "from experiments.engine.exports import from_export",
        'speech_llm = from_export(".")',
        "```",
        "",
    ]
    return "\n".join(lines)
