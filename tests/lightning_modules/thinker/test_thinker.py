"""The thinker: streamed equals teacher-forced, batched equals single, the loss is of replies only."""

import copy
from collections import Counter

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.thinker import Thinker
from tests.lightning_modules.thinker.tiny import REPLIES, make_language_model, make_speech_encoder, make_tokenizer

Speech = tuple[torch.Tensor, torch.Tensor]


def overfit(thinker: Thinker, speech: Speech, replies: list[str], num_steps: int = 60) -> Thinker:
    """Train on one batch until every token is the most probable one."""
    optimizer = torch.optim.AdamW(thinker.parameters(), lr=3e-3)
    for _ in range(num_steps):
        output = thinker(*speech, replies)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return thinker.eval()


def test_it_learns_a_batch_and_streams_what_it_reads(thinker: Thinker, speech: Speech) -> None:
    overfit(thinker, speech, REPLIES)
    waveform, lengths = speech
    with torch.no_grad():
        output = thinker(waveform, lengths, REPLIES)
    assert output.is_exact.all()
    for row, reply in enumerate(REPLIES):
        tokens = list(thinker.stream(thinker.encode(waveform[row, : lengths[row]]), max_new_tokens=50))
        num_tokens = int(output.lengths[row])
        assert [token.token_id for token in tokens] == output.token_ids[row, :num_tokens].tolist()
        assert thinker.decode([token.token_id for token in tokens]) == reply
        hidden = torch.stack([token.hidden for token in tokens])
        embedding = torch.stack([token.embedding for token in tokens])
        torch.testing.assert_close(hidden, output.hidden[row, :num_tokens], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(embedding, output.embedding[row, :num_tokens])
        assert not hidden.requires_grad


def test_hidden_is_the_state_that_predicted_the_token(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    waveform, lengths = speech
    output = thinker(waveform, lengths, REPLIES)
    prompt = thinker.encode(waveform[0, : lengths[0]]).embeddings
    ids = output.token_ids[:1, : output.lengths[0]]
    states = thinker.language_model(torch.cat([prompt, thinker.language_model.embed(ids)], dim=1))[0]
    start = prompt.shape[1] - 1
    torch.testing.assert_close(output.hidden[0, : ids.shape[1]], states[start:-1], atol=1e-5, rtol=1e-5)


def test_a_later_token_does_not_change_earlier_states(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    waveform, lengths = speech[0][:1], speech[1][:1]
    one = thinker(waveform, lengths, ["The capital of France is Paris."])
    two = thinker(waveform, lengths, ["The capital of France will wake you at seven."])
    same = int((one.token_ids[0, :6] == two.token_ids[0, :6]).long().cumprod(0).sum())
    assert 0 < same < 6
    torch.testing.assert_close(one.hidden[0, : same + 1], two.hidden[0, : same + 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one.hidden[0, same + 1], two.hidden[0, same + 1], atol=1e-3)


def test_a_batched_row_equals_the_single_row(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    waveform, lengths = speech
    batch = thinker(waveform, lengths, REPLIES)
    losses, num_targets = [], []
    for row, reply in enumerate(REPLIES):
        single = thinker(waveform[row : row + 1, : lengths[row]], lengths[row : row + 1], [reply])
        num_tokens = int(single.lengths[0])
        assert torch.equal(batch.token_ids[row, :num_tokens], single.token_ids[0])
        torch.testing.assert_close(batch.hidden[row, :num_tokens], single.hidden[0], atol=1e-5, rtol=1e-5)
        assert not batch.hidden[row, num_tokens:].any() and not batch.embedding[row, num_tokens:].any()
        losses.append(single.loss * (num_tokens + 1))
        num_targets.append(num_tokens + 1)
    assert int(batch.num_scored_tokens) == sum(num_targets)
    torch.testing.assert_close(batch.loss, sum(losses) / sum(num_targets), atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_transformers_on_reply_and_end_of_turn(thinker: Thinker, speech: Speech) -> None:
    thinker.eval()
    waveform, lengths = speech[0][:1], speech[1][:1]
    output = thinker(waveform, lengths, REPLIES[:1])
    prompt = thinker.encode(waveform[0, : lengths[0]]).embeddings
    ids = torch.cat([output.token_ids, torch.tensor([[thinker.prompt.end_of_turn_id]])], dim=1)
    labels = torch.cat([torch.full((1, prompt.shape[1]), -100), ids], dim=1)
    embeddings = torch.cat([prompt, thinker.language_model.embed(ids)], dim=1)
    expected = thinker.language_model.causal_lm(inputs_embeds=embeddings, labels=labels).loss
    torch.testing.assert_close(output.loss, expected)


def test_the_prompt_holds_the_audio_in_its_place(thinker: Thinker, speech: Speech) -> None:
    waveform = speech[0][0, :16000]
    embeddings = thinker.encode(waveform).embeddings[0]
    audio, _ = thinker.adaptor(*thinker.speech_encoder(waveform[None], torch.tensor([16000])))
    prefix = thinker.language_model.embed(torch.tensor(thinker.prompt.prefix_ids))
    suffix = thinker.language_model.embed(torch.tensor(thinker.prompt.suffix_ids))
    torch.testing.assert_close(embeddings, torch.cat([prefix, audio[0], suffix]))
    assert audio.shape[1] == 10  # 50 frames per second, 5 per token


def test_frozen_parts_do_not_train(tokenizer: PreTrainedTokenizerFast, speech: Speech) -> None:
    language_model = make_language_model()
    language_model.add_lora(rank=2)
    thinker = Thinker(
        make_speech_encoder(), Adaptor(32, 32, 64), language_model, tokenizer, train_speech_encoder=False
    ).train()
    assert not thinker.speech_encoder.training and thinker.language_model.training
    trained = Counter(name.split(".")[0] for name, parameter in thinker.named_parameters() if parameter.requires_grad)
    assert set(trained) == {"adaptor", "language_model"} and trained["adaptor"] == 4
    thinker(*speech, REPLIES).loss.backward()
    with_gradient = {name for name, parameter in thinker.named_parameters() if parameter.grad is not None}
    assert with_gradient and all("adaptor" in name or "lora_" in name for name in with_gradient)


def test_everything_trains_by_default_but_the_sinusoids(thinker: Thinker) -> None:
    still = [name for name, parameter in thinker.named_parameters() if not parameter.requires_grad]
    assert still == ["speech_encoder.encoder.embed_positions.weight"]


def test_bfloat16_parts_fit_together(tokenizer: PreTrainedTokenizerFast, speech: Speech) -> None:
    thinker = Thinker(
        make_speech_encoder().to(torch.bfloat16), Adaptor(32, 32, 64), make_language_model(), tokenizer
    ).eval()
    output = thinker(*speech, REPLIES)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    with_float32 = copy.deepcopy(thinker).float()
    torch.testing.assert_close(output.loss, with_float32(*speech, REPLIES).loss, rtol=0.02, atol=0)
    assert list(thinker.stream(thinker.encode(speech[0][0]), max_new_tokens=3))


@pytest.mark.parametrize("max_new_tokens", [0, 1, 3])
def test_a_stream_is_cut_off_where_it_is_asked_to_be(thinker: Thinker, speech: Speech, max_new_tokens: int) -> None:
    prompt = thinker.eval().encode(speech[0][0])
    longer = [token.token_id for token in thinker.stream(prompt, 6)]
    assert len(longer) == 6, "an untrained thinker does not end its turn"
    assert [token.token_id for token in thinker.stream(prompt, max_new_tokens)] == longer[:max_new_tokens]


def test_parts_that_do_not_fit_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="adaptor.input_size is 16, the speech encoder gives 32"):
        Thinker(make_speech_encoder(), Adaptor(16, 32), make_language_model(), tokenizer)
    with pytest.raises(ValueError, match="adaptor.output_size is 16, the language model takes 32"):
        Thinker(make_speech_encoder(), Adaptor(32, 16), make_language_model(), tokenizer)
    small = LanguageModel.from_config(vocab_size=100, width=32, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="the tokenizer has .* tokens, the language model has embeddings for 100"):
        Thinker(make_speech_encoder(), Adaptor(32, 32), small, tokenizer)
    with pytest.raises(ValueError, match=r"has no token '<\|audio\|>'"):
        Thinker(make_speech_encoder(), Adaptor(32, 32), make_language_model(), make_tokenizer(("<|im_start|>",)))


def test_an_empty_reply_is_refused(thinker: Thinker, speech: Speech) -> None:
    with pytest.raises(ValueError, match="reply '' is empty"):
        thinker(*speech, ["Yes.", "", "No."])


def test_the_text_of_a_query_takes_the_place_of_its_audio(thinker: Thinker) -> None:
    thinker.eval()
    queries = ["What is Paris?", "Wake me at seven, please.", "Is it so?"]
    output = thinker.read(queries, REPLIES)
    ids = thinker.prompt.prefix_ids + thinker.prompt.encode_transcripts(queries)[0] + thinker.prompt.suffix_ids
    num_tokens = int(output.lengths[0])
    states = thinker.language_model(
        thinker.language_model.embed(torch.tensor([ids + output.token_ids[0, :num_tokens].tolist()]))
    )
    expected = states[0, len(ids) - 1 : -1]
    torch.testing.assert_close(output.hidden[0, :num_tokens], expected, atol=1e-5, rtol=1e-5)


def test_reading_trains_the_language_model_alone(thinker: Thinker) -> None:
    thinker.read(["Where?", "When?", "So?"], REPLIES).loss.backward()
    with_gradient = {name.split(".")[0] for name, parameter in thinker.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"language_model"}
