"""CosyVoice2's flow and HiFT, built by the classes of the user's own checkout of CosyVoice."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lightning_modules.errors import UserError

CONFIG, FLOW, HIFT = "cosyvoice2.yaml", "flow.pt", "hift.pt"
MATCHA = Path("third_party") / "Matcha-TTS"
BUILT = ("flow", "hift")
EMBEDDING_SIZE, NUM_MELS = 192, 80


@dataclass(frozen=True)
class Voice:
    """Whose voice the flow gives, as CosyVoice's ``add_zero_shot_spk`` and ``save_spkinfo`` write it.

    Attributes:
        embedding: Of the speaker, ``(1, 192) float32``.
        prompt_tokens: Speech tokens of a recording, ``(1, P) int32``.
        prompt_mel: Its log-mel, ``(1, F, 80) float32``.
    """

    embedding: Tensor
    prompt_tokens: Tensor
    prompt_mel: Tensor

    @classmethod
    def read(cls, path: Path | None, name: str | None) -> "Voice":
        """Read a voice; without a file it is the flow's own without speaker and prompt.

        Args:
            path: A ``spk2info.pt``.
            name: Which of its speakers.

        Raises:
            FileNotFoundError: If there is no such file.
            UserError: If it does not hold that speaker.
        """
        entry: Mapping[str, Tensor] = {}
        if path is not None:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file of speakers; CosyVoice writes it by save_spkinfo()")
            speakers = torch.load(path, map_location="cpu", weights_only=True)
            if name not in speakers:
                raise UserError(f"{path} holds no speaker {name!r}, but {sorted(speakers)}; name one of them")
            entry = speakers[name]
        embedding = entry.get("flow_embedding", entry.get("embedding", torch.zeros(1, EMBEDDING_SIZE)))
        tokens = entry.get("flow_prompt_speech_token", torch.zeros(1, 0, dtype=torch.int32))
        return cls(embedding, tokens, entry.get("prompt_speech_feat", torch.zeros(1, 0, NUM_MELS)))


def check_checkout(checkout: Path, model_dir: Path) -> None:
    """Refuse folders that are not a checkout of CosyVoice and a CosyVoice2 model.

    Raises:
        FileNotFoundError: If a file is missing, with what to do about it.
    """
    advice = {
        checkout / "cosyvoice" / "flow" / "flow.py": "clone FunAudioLLM/CosyVoice with its submodules, and give it",
        checkout / MATCHA / "matcha": "run 'git submodule update --init --recursive' there",
        **{
            model_dir / name: "give the folder of the model CosyVoice2-0.5B as model_dir"
            for name in (CONFIG, FLOW, HIFT)
        },
    }
    for path, what_to_do in advice.items():
        if not path.exists():
            raise FileNotFoundError(f"CosyVoice2: there is no {path}; {what_to_do}")


def import_from_checkout(checkout: Path, module: str) -> Any:
    """Import a module that needs the checkout or what it requires.

    The checkout stands last in the search path, so that none of its folders hides a package.

    Raises:
        UserError: If the import fails, or finds another CosyVoice.
    """
    for folder in (checkout.resolve(), (checkout / MATCHA).resolve()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"CosyVoice2: importing {module} failed ({error}); install what {checkout / 'requirements.txt'} lists "
            "of it into this environment, without its versions of torch, transformers and lightning"
        ) from error
    file = Path(found.__file__ or "")
    if module.startswith("cosyvoice") and checkout.resolve() not in file.resolve().parents:
        raise UserError(f"CosyVoice2: {module} comes from {file}, not from {checkout}; uninstall the other one")
    return found


def load_flow_and_hift(checkout: Path, model_dir: Path) -> tuple[nn.Module, nn.Module]:
    """Build flow and HiFT as ``cosyvoice2.yaml`` says, and load their published weights.

    Nothing else of that file is built: not its language model, which is not needed, and not its seeds, which would
    change the random state.

    Args:
        checkout: Folder of the checkout.
        model_dir: Folder of the model, with ``cosyvoice2.yaml``, ``flow.pt`` and ``hift.pt``.

    Returns:
        Both, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: If a file is missing.
        UserError: If an import fails, or the weights are not those of the classes.
    """
    check_checkout(checkout, model_dir)
    text = (model_dir / CONFIG).read_text(encoding="utf-8")
    # Before hyperpyyaml does it, whose errors do not name the package that is missing.
    for module in needed_modules(text):
        import_from_checkout(checkout, module)
    hyperpyyaml = import_from_checkout(checkout, "hyperpyyaml")
    with torch.random.fork_rng():  # the flow seeds PyTorch for its noise
        built = hyperpyyaml.load_hyperpyyaml(text, overrides=dict.fromkeys(not_needed(text)))
    flow, hift = (built[name] for name in BUILT)
    _load(flow, torch.load(model_dir / FLOW, map_location="cpu", weights_only=True), model_dir / FLOW)
    weights = torch.load(model_dir / HIFT, map_location="cpu", weights_only=True)
    _load(hift, {name.removeprefix("generator."): one for name, one in weights.items()}, model_dir / HIFT)
    return flow.eval(), hift.eval()


def _top_level(text: str) -> dict[str, yaml.Node]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    keys = {key.value: node for key, node in root.value} if isinstance(root, yaml.MappingNode) else {}
    if missing := [name for name in BUILT if name not in keys]:
        raise UserError(f"{CONFIG} has no {missing}; give the folder of the model CosyVoice2-0.5B as model_dir")
    return keys


def needed_modules(text: str) -> list[str]:
    """Give the modules of the classes that flow and HiFT are built of, each once, in order."""
    found: list[str] = []
    nodes: list[Any] = [_top_level(text)[name] for name in BUILT]
    while nodes:
        node = nodes.pop(0)
        if str(node.tag).startswith("!new:"):
            found.append(str(node.tag).removeprefix("!new:").rpartition(".")[0])
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
    return list(dict.fromkeys(found))


def not_needed(text: str) -> list[str]:
    """Give the top-level keys of ``cosyvoice2.yaml`` that build something other than flow and HiFT."""
    keys = _top_level(text)
    plain = [name for name, node in keys.items() if isinstance(node, yaml.ScalarNode) and not _builds(node)]
    return [name for name in keys if name not in (*BUILT, *plain)]


def _builds(node: yaml.Node) -> bool:
    return str(node.tag).startswith(("!new:", "!name:", "!apply:", "!module:"))


def _load(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"CosyVoice2: {path} does not hold the weights of {type(module).__qualname__} "
            f"({str(error).splitlines()[1].strip()}); use the checkout and the model of one version"
        ) from error
