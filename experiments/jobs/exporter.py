"""A job that writes a whole trained system into one directory, for other programs and for use without runs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules.formats.atomic_files import write_json, write_text
from experiments.engine.artifacts import load_trained
from experiments.engine.exports import CONFIG_FILE, FORMAT_VERSION, PLACE, self_contained_spec
from experiments.jobs.model_card import describe_export
from experiments.jobs.speaking.speaking_model import as_speaking, own_adapter
from lightning_modules.codec.transformers_codec import TransformersCodec
from lightning_modules.number_checks import require_positive
from lightning_modules.speech_codec import TRAINING_ONLY
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.base import Talker
from lightning_modules.talker.network.anchors import TextStates

OUTPUT_LAYERS = ("head", "output_proj")  # of our talkers, and of those of VocalNet
LANGUAGE_MODEL, SPEECH_ENCODER, CODEC = "thinker/language_model", "thinker/speech_encoder", "vocoder/codec"


class Exporter:
    """Writes thinker, adaptor, talkers and vocoder of a run, with their settings and a model card.

    The language model is a directory of transformers with its tokenizer, LoRA matrices are folders of peft, all other
    weights are safetensors. :func:`~experiments.engine.exports.from_export` reads the whole back.

    Args:
        run: The run of a :class:`SpeechLLM`: a comparison, or a training.
        vocoder_run: The run whose vocoder is exported, if ``run`` has none, as a training has.
        adapter: The LoRA adapter that is exported with the base; the one that was trained in ``run`` if None.
        merge: Add the adapter to the weights; False keeps it apart, as PEFT folders beside the base.
        tolerance: Largest difference between outputs of merged and unmerged weights, as a share of the largest output,
            that is not told as a problem.

    Raises:
        UserError: If the tolerance is not positive.
    """

    def __init__(
        self,
        run: Path,
        vocoder_run: Path | None = None,
        adapter: str | None = None,
        merge: bool = True,
        tolerance: float = 1e-3,
    ) -> None:
        require_positive(tolerance=tolerance)
        self.from_run, self.vocoder_run = Path(run), vocoder_run
        self.adapter, self.merge, self.tolerance = adapter, merge, tolerance

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write ``export/`` into the run directory.

        Args:
            output_dir: The run directory of this job.

        Returns:
            ``num_talkers``, ``num_parameters`` and, if an adapter was merged, ``merge_difference/<output>``.

        Raises:
            FileNotFoundError: If a run is missing or has no checkpoint.
            UserError: If it holds no talker, no vocoder for its tokens or no such adapter.
        """
        llm = as_speaking(load_trained(self.from_run), self.from_run, self.vocoder_run)
        adapter = self.adapter or own_adapter(llm)
        llm.adapters.check(adapter)
        llm.adapters.select(adapter)
        differences: dict[str, float] = {}
        if self.merge:
            before = probe(llm)
            if llm.adapters.merge(adapter):
                differences = compare(before, probe(llm))
        folder, partial = Path(output_dir) / "export", Path(output_dir) / ".export.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        self._write(llm, adapter, partial)
        metrics = {
            "num_talkers": len(llm.talkers),
            "num_parameters": sum(one.numel() for one in llm.parameters()),
            **{f"merge_difference/{name}": value for name, value in differences.items()},
        }
        too_large = {name: value for name, value in differences.items() if value > self.tolerance}
        card = describe_export(self.from_run, llm, adapter, self.merge, differences, self.tolerance)
        write_text(partial / "README.md", card)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        told = [f"merged and unmerged {name} differ by {value:.1e} of its range" for name, value in too_large.items()]
        lines = [f"exported to {folder}", *(f"warning: {line}, more than {self.tolerance:g}" for line in told)]
        write_text(Path(output_dir) / "summary.txt", "\n".join(lines) + "\n")
        return metrics

    def _write(self, llm: SpeechLLM, adapter: str | None, folder: Path) -> None:
        """Write weights, settings and, unless it is merged, the adapter."""
        folder.mkdir(parents=True)
        if not self.merge and adapter is not None:
            llm.adapters.save(adapter, folder / "adapters" / adapter)
            llm.adapters.merge(None)
        thinker = llm.thinker
        thinker.language_model.causal_lm.save_pretrained(str(folder / LANGUAGE_MODEL))
        thinker.prompt.tokenizer.save_pretrained(str(folder / LANGUAGE_MODEL))
        thinker.speech_encoder.encoder.save_pretrained(str(folder / SPEECH_ENCODER))
        assert llm.vocoder is not None
        parts: dict[str, nn.Module] = {"thinker.adaptor": thinker.adaptor}
        if isinstance(codec := getattr(llm.vocoder, "codec", None), TransformersCodec):
            codec.model.save_pretrained(str(folder / CODEC))  # all that such a vocoder has of weights
        else:
            parts["vocoder"] = llm.vocoder
        parts |= {f"talkers.{name}": talker for name, talker in llm.talkers.items()}
        weights = {part: f"{part.replace('.', '/', 1)}.safetensors" for part in parts}
        for part, module in parts.items():
            file = folder / weights[part]
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}, file)
        settings = {"format_version": FORMAT_VERSION, "module": self._describe(llm, adapter), "weights": weights}
        write_json(folder / CONFIG_FILE, settings)

    def _describe(self, llm: SpeechLLM, adapter: str | None) -> dict[str, Any]:
        """Describe the module such that everything that it needs lies in the export."""
        spec = self_contained_spec(self.from_run)
        arguments = {key: value for key, value in spec["init_args"].items() if value is not None}
        for key in ("thinker_objective", "initial_talker", "lora", "adapters", "talker_learning_rates"):
            arguments.pop(key, None)
        if "vocoder" not in arguments:
            assert self.vocoder_run is not None
            arguments["vocoder"] = self_contained_spec(self.vocoder_run, "vocoder")
        arguments["vocoder"] = _without(TRAINING_ONLY, arguments["vocoder"])
        if isinstance(codec := getattr(llm.vocoder, "codec", None), TransformersCodec):
            spec_of_codec = _spec_of(codec, {"path": f"{PLACE}/{CODEC}", **codec.constructor_arguments()})
            spec_of_codec["class_path"] += ".from_pretrained"
            arguments["vocoder"]["init_args"]["codec"] = spec_of_codec
        arguments["draw_weights"] = False
        while "thinker" in arguments["thinker"]["init_args"]:  # what let it train on is no part of it
            arguments["thinker"] = arguments["thinker"]["init_args"]["thinker"]
        encoder, thinker = llm.thinker.speech_encoder, arguments["thinker"]["init_args"]
        thinker["speech_encoder"] = {
            "class_path": "lightning_modules.thinker.speech_encoder.SpeechEncoder.from_pretrained",
            "init_args": {
                "path": f"{PLACE}/{SPEECH_ENCODER}",
                "pad_to_s": encoder.pad_to_s,
                "dtype": str(next(encoder.parameters()).dtype).removeprefix("torch."),
                "attention": encoder.encoder.config._attn_implementation,
            },
        }
        language_model = llm.thinker.language_model
        thinker["language_model"] = {
            "class_path": "lightning_modules.thinker.language_model.LanguageModel.from_pretrained",
            "init_args": {
                "path": f"{PLACE}/{LANGUAGE_MODEL}",
                "dtype": str(language_model.dtype).removeprefix("torch."),
                "attention": language_model.causal_lm.config._attn_implementation,
            },
        }
        thinker["tokenizer"] = f"{PLACE}/{LANGUAGE_MODEL}"
        thinker["adaptor"] = _spec_of(llm.thinker.adaptor, llm.thinker.adaptor.constructor_arguments())
        for name, talker in llm.talkers.items():
            assert isinstance(talker, Talker)
            if (own := talker.constructor_arguments()) is not None:
                arguments["talkers"][name] = _spec_of(talker, own)
        decodings = {name: one for name, one in (arguments.get("decodings") or {}).items() if one is not None}
        if adapter is not None and not self.merge:
            arguments["adapters"] = {adapter: {"folder": f"{PLACE}/adapters/{adapter}"}}
            arguments["decodings"] = {
                name: one for name, one in decodings.items() if one.get("adapter") in (None, adapter)
            }
        else:
            kept = {name: one for name, one in decodings.items() if one.get("adapter") == adapter}
            arguments["decodings"] = {name: {**one, "adapter": None} for name, one in kept.items()}
        return json.loads(json.dumps({**spec, "init_args": arguments}))


def _spec_of(part: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Describe a part by its class and arguments, whatever files it was read from."""
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": arguments}


def _without(names: Sequence[str], node: Any) -> Any:
    """Leave arguments out of a description, wherever they are."""
    if isinstance(node, dict):
        return {key: _without(names, value) for key, value in node.items() if key not in names}
    return [_without(names, value) for value in node] if isinstance(node, list) else node


@torch.no_grad()
def probe(llm: SpeechLLM) -> dict[str, Tensor]:
    """Compute outputs of a system on fixed made-up input, in float32 and evaluation mode.

    Returns:
        By name: the adaptor's embeddings, and the logits of the language model and of each talker.
    """
    generator = torch.Generator().manual_seed(0)
    device = llm.device
    query = 0.1 * torch.randn(16_000, generator=generator)
    prompt = llm.thinker.encode(query.to(device)).embeddings
    hidden = llm.thinker.language_model(prompt)
    outputs = {"prompt embeddings": prompt, "text logits": llm.thinker.language_model.logits(hidden)}
    num_texts, num_units = torch.tensor([5, 3]), torch.tensor([24, 40])
    states = torch.randn(2, 5, llm.thinker.hidden_size + llm.thinker.embedding_size, generator=generator).to(device)
    text = TextStates(*states.split([llm.thinker.hidden_size, llm.thinker.embedding_size], -1), num_texts.to(device))
    for name, talker in llm.talkers.items():
        units = torch.randint(0, talker.vocabulary.num_codes, (2, 40), generator=generator).to(device)
        seeded = torch.Generator(device).manual_seed(0)
        outputs[f"logits of {name}"] = _logits_of(talker, text, units, num_units.to(device), seeded)
    return {name: value.detach().float().clone() for name, value in outputs.items()}


def _logits_of(talker: nn.Module, *inputs: Any) -> Tensor:
    """Collect what the output layers give in a pass, ``(n,)``."""
    found: list[Tensor] = []
    heads = [layer for path, layer in talker.named_modules() if path.rsplit(".", 1)[-1] in OUTPUT_LAYERS]
    hooks = [head.register_forward_hook(lambda _, __, output: found.append(output.flatten())) for head in heads]
    try:
        talker(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def compare(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Give the largest difference of each output, as a share of its largest value."""
    return {name: float((after[name] - one).abs().max() / one.abs().max()) for name, one in before.items()}
