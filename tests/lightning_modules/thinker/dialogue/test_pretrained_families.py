"""Checkpoints of published families as they are: written in their format, loaded, trained on dialogues, decoded."""

from pathlib import Path

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperModel,
)

from datamodules.batch import SpokenBatch
from lightning_modules.dialogue import History, Turn
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.dialogue.settings import DialogueSettings
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.dialogue.families import LLAMA3_2, QWEN2_5, QWEN3, Family, make_family_tokenizer
from tests.lightning_modules.thinker.tiny import REPLIES

Speech = tuple[torch.Tensor, torch.Tensor]
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def _write(folder: Path, model: type[PreTrainedModel], config: PreTrainedConfig, end_ids: list[int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    built.generation_config = GenerationConfig(eos_token_id=end_ids, do_sample=True, temperature=0.6, top_p=0.9)
    built.save_pretrained(folder)


def write_language_model(folder: Path, family: Family, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what a family's repository holds: model, generation settings and tokenizer."""
    # Published models have more embeddings than their tokenizers have tokens.
    sizes = {"vocab_size": len(tokenizer) + 6, **_SIZES}
    ids = tokenizer.convert_tokens_to_ids
    if family is QWEN3:
        config = Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=False)
        _write(folder, Qwen3ForCausalLM, config, ids(["<|im_end|>", "<|endoftext|>"]))
    elif family is QWEN2_5:
        config = Qwen2Config(**sizes, tie_word_embeddings=True)
        _write(folder, Qwen2ForCausalLM, config, ids(["<|im_end|>", "<|endoftext|>"]))
    else:
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        config = LlamaConfig(
            **sizes,
            rope_parameters=scaling,
            tie_word_embeddings=True,
            bos_token_id=ids("<|begin_of_text|>"),
            eos_token_id=ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
        )
        _write(folder, LlamaForCausalLM, config, ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]))
    tokenizer.save_pretrained(folder)


def write_whisper(folder: Path, num_mel_bins: int, width: int) -> None:
    """Write a Whisper, decoder included; 80 mel bands as most of them have, or 128 as large-v3 has."""
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=num_mel_bins,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=150,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        WhisperModel(config).save_pretrained(folder)


def load_thinker(folder: Path, family: Family, width: int) -> Thinker:
    encoder = SpeechEncoder.from_pretrained(folder / "whisper", pad_to_s=3.0)
    language_model = LanguageModel.from_pretrained(folder / "language_model", lora_rank=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        adaptor = Adaptor(width, language_model.embedding_size, 64)
    return Thinker(
        encoder,
        adaptor,
        language_model,
        folder / "language_model",
        audio_token=family.audio_token,
        train_speech_encoder=False,
        dialogue=DialogueSettings(blank_token=family.blank_token),
    )


def make_history() -> History:
    generator = torch.Generator().manual_seed(3)
    speech = [0.1 * torch.randn(n, generator=generator) for n in (6000, 11000)]
    will, yes = Turn("assistant", "I will."), Turn("assistant", "Yes.")
    turns = [
        [Turn("user", "Wake me.", is_spoken=True), will],
        [],
        [Turn("user", "At seven?"), yes, Turn("user", is_spoken=True), yes],
    ]
    return History.of(turns, [speech[:1], [], speech[1:]])


def train(thinker: Thinker, batch: SpokenBatch, num_steps: int) -> list[float]:
    """Train on one batch, as stage 1 does, and give the losses."""
    optimizer = torch.optim.AdamW([one for one in thinker.train().parameters() if one.requires_grad], lr=3e-3)
    losses = []
    for _ in range(num_steps):
        (term,), scalars, _ = ThinkerObjective()(thinker, batch)
        optimizer.zero_grad()
        term.mean.backward()
        optimizer.step()
        losses.append(float(scalars["train/loss"].detach()))
    return losses


@pytest.mark.parametrize(
    ("family", "num_mel_bins", "width"),
    [
        pytest.param(QWEN3, 128, 32, id="qwen3, large-v3"),
        pytest.param(QWEN2_5, 80, 24, id="qwen2.5, tiny"),
        pytest.param(LLAMA3_2, 80, 24, id="llama3.2, tiny"),
    ],
)
def test_a_family_is_loaded_trained_and_decoded(
    tmp_path: Path, speech: Speech, family: Family, num_mel_bins: int, width: int
) -> None:
    write_language_model(tmp_path / "language_model", family, make_family_tokenizer(family))
    write_whisper(tmp_path / "whisper", num_mel_bins, width)
    thinker = load_thinker(tmp_path, family, width)
    batch = SpokenBatch(["a", "b", "c"], REPLIES, query=speech[0], query_lengths=speech[1], history=make_history())
    before = {name: value.clone() for name, value in thinker.state_dict().items()}
    losses = train(thinker, batch, num_steps=25)
    assert losses[-1] < 0.9 * losses[0]
    changed = {name for name, value in thinker.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name or name.startswith("adaptor.") for name in changed)

    thinker.eval()
    model, stop_ids = thinker.language_model.causal_lm, thinker.prompt.stop_ids(thinker.language_model.end_ids)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=sorted(stop_ids), pad_token_id=0)
    with torch.no_grad():
        output = thinker(*speech, REPLIES, history=batch.history)
        for row, (query, history) in enumerate(batch.queries()):
            prompt = thinker.encode(query, history)
            num_tokens, start = int(output.lengths[row]), prompt.embeddings.shape[1] - 1
            whole = torch.cat([prompt.embeddings, output.embedding[row : row + 1, :num_tokens]], dim=1)
            hidden = model(inputs_embeds=whole, output_hidden_states=True).hidden_states[-1][0, start:-1]
            torch.testing.assert_close(output.hidden[row, :num_tokens], hidden, atol=1e-4, rtol=1e-4)
            made = model.generate(inputs_embeds=prompt.embeddings, generation_config=greedy)[0].tolist()
            streamed = [token.token_id for token in thinker.stream(prompt, 6)]
            assert streamed == [one for one in made if one not in stop_ids]


@pytest.mark.parametrize("family", [QWEN3, QWEN2_5, LLAMA3_2], ids=lambda family: family.name)
def test_a_reply_stops_at_the_end_of_turn_and_of_text_and_nowhere_else(tmp_path: Path, family: Family) -> None:
    tokenizer = make_family_tokenizer(family)
    write_language_model(tmp_path / "language_model", family, tokenizer)
    write_whisper(tmp_path / "whisper", 80, 24)
    thinker = load_thinker(tmp_path, family, 24).eval()
    prompt = thinker.encode(0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0)))
    chosen = torch.nn.Linear(thinker.hidden_size, thinker.language_model.vocab_size)
    thinker.language_model.causal_lm.set_output_embeddings(chosen)
    stops = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}
    for token in (*family.special_tokens, "a"):
        with torch.no_grad():
            chosen.weight.zero_()
            chosen.bias.zero_()[tokenizer.convert_tokens_to_ids(token)] = 1.0
        assert len(list(thinker.stream(prompt, 3))) == (0 if token in stops else 3), token
