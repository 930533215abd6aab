"""Text states that a job stored, for talkers that train without running the thinker, and whose they are."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from datamodules.batch import SpokenBatch
from lightning_modules.adapters.lora import adapters_in_use
from lightning_modules.errors import UserError
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.talker.network.transfers import send_to
from lightning_modules.thinker.dialogue.prompt import ChatPrompt
from lightning_modules.thinker.thinker import Thinker

# Values that are cast and hashed at a time; more would take memory, fewer time.
_CHUNK = 2**22


@torch.no_grad()
def stored_states(thinker: Thinker, batch: SpokenBatch) -> TextStates:
    """Take hidden states from a batch, and embeddings from the thinker that wrote them.

    Args:
        thinker: The thinker, on the device of the batch.
        batch: Holds token ids and hidden states.

    Returns:
        What a pass of the thinker gives, its hidden states rounded to bfloat16.

    Raises:
        UserError: If the hidden states are not as wide as the thinker's.
    """
    assert batch.text_ids is not None and batch.text_hidden is not None and batch.text_lengths is not None
    if batch.text_hidden.shape[-1] != thinker.hidden_size:
        raise UserError(
            f"The text states are {batch.text_hidden.shape[-1]} wide, the thinker's hidden states "
            f"{thinker.hidden_size}: set text_states_root to the states that this thinker wrote."
        )
    device = batch.text_ids.device
    is_text = torch.arange(batch.text_ids.shape[1], device=device) < send_to(device, batch.text_lengths)[:, None]
    embedding = thinker.language_model.embed(batch.text_ids)
    embedding = embedding * is_text[..., None].to(embedding.dtype)
    return TextStates(batch.text_hidden, embedding, batch.text_lengths)


def refuse_states_of_another(thinker: Thinker, datamodule: Any) -> None:
    """Refuse data whose text states another thinker wrote, or the same one with another adapter.

    Args:
        thinker: The thinker that the talkers speak for.
        datamodule: What gives the batches; its `thinkers_of_states`, if it has any, says who wrote its states.

    Raises:
        UserError: If a digest is not that of the thinker.
    """
    writers: dict[str, str] = getattr(datamodule, "thinkers_of_states", {})
    own = thinker_digest(thinker) if writers else ""
    for name, writer in writers.items():
        if writer != own:
            raise UserError(
                f"the text states of {name} were written by another thinker, or with another adapter (digest "
                f"{writer[:12]}, this one has {own[:12]}), and differ from those that the talkers get at decoding; run "
                "the stage text_states with this thinker and set text_states_root, or text_states of the sharded set, "
                "to that run, or read 'query' in place of 'text_states'"
            )


def thinker_digest(thinker: Thinker) -> str:
    """Digest a thinker: its weights, those of the LoRA adapters in use and their scales, tokenizer and chat template.

    Weights count by their values: the same ones in bfloat16 and in float32 give the same digest. An adapter that is
    loaded but not in use does not count, and nor does its name; merging one gives another digest, since sums are
    rounded.

    Args:
        thinker: Any thinker; its weights may lie on any device but "meta".

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    layers = {name: part for name, part in thinker.named_modules() if isinstance(part, BaseTunerLayer)}
    for name, value in sorted(_weights_in_use(thinker, layers), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(_digest_values(value))
    for name, part in sorted(layers.items()):
        for adapter in sorted(adapters_in_use(part)):
            digest.update(f"{name} {float(part.scaling[adapter])}".encode())
    digest.update(str(thinker.speech_encoder.pad_to_samples).encode())
    digest.update(_describe(thinker.prompt).encode())
    return digest.hexdigest()


def _weights_in_use(thinker: Thinker, layers: Mapping[str, BaseTunerLayer]) -> Iterator[tuple[str, Tensor]]:
    """Give all weights but those of idle adapters, under names that do not tell what an adapter is called."""
    renamed: dict[str, str | None] = {}
    for name, part in layers.items():
        in_use = sorted(adapters_in_use(part))
        for kind in part.adapter_layer_names:
            for adapter in getattr(part, kind, {}):
                number = in_use.index(adapter) if adapter in in_use else None
                renamed[f"{name}.{kind}.{adapter}"] = None if number is None else f"{name}.{kind}.{number}"
    for name, part in thinker.named_modules():
        if isinstance(part, ModulesToSaveWrapper):
            renamed |= _names_of_copies(name, part)
    for key, value in thinker.state_dict().items():
        adapted = next((prefix for prefix in _prefixes(key) if prefix in renamed), None)
        own_name = key if adapted is None else renamed[adapted]
        if own_name is not None:
            # a layer whose adapters are idle is the layer itself
            yield own_name.replace(".base_layer.", "."), value


def _names_of_copies(name: str, wrapper: ModulesToSaveWrapper) -> dict[str, str | None]:
    """Rename the weights of a module of which adapters hold copies: those that act by the module's own name."""
    active = None if wrapper.disable_adapters else wrapper.active_adapter
    acts = {"original_module": active is None} | {
        f"modules_to_save.{one}": one == active for one in wrapper.modules_to_save
    }
    own_names = wrapper.original_module.state_dict()
    return {
        f"{name}.{place}.{own}": f"{name}.{own}" if is_active else None
        for place, is_active in acts.items()
        for own in own_names
    }


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _digest_values(value: Tensor) -> bytes:
    """Digest the values of a tensor as float32, or as they are if they are integers."""
    digest = hashlib.sha256()
    flat = value.detach().reshape(-1)
    for chunk in flat.split(_CHUNK):
        kept = chunk.float() if chunk.is_floating_point() else chunk
        digest.update(kept.cpu().contiguous().numpy())
    return digest.digest()


def _describe(prompt: ChatPrompt) -> str:
    """Describe what turns text into token ids, without the settings of padding, which change while it is used."""
    backend = getattr(prompt.tokenizer, "backend_tokenizer", None)
    rules = {"vocabulary": prompt.tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return json.dumps([rules, prompt.settings], sort_keys=True)
