"""A live dialogue: each answer depends on what was said before, as if it had been given as a history."""

import torch

from lightning_modules.dialogue import History, Turn
from lightning_modules.inference.conversation import Conversation
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.talker.decoding.decoding import Decoding
from tests.lightning_modules.test_speech_llm import make_batch, make_llm

DECODING = Decoding("ntp", 8)


def test_a_second_query_is_answered_with_the_first_in_mind() -> None:
    responder = make_llm("ntp").eval().responder
    batch = make_batch(0)
    assert batch.query is not None
    first, second = batch.query[0], batch.query[1, :6000]
    conversation = Conversation(responder)
    assert conversation.history is None
    replies = [SpokenReply(), SpokenReply()]
    for query, reply in zip((first, second), replies, strict=True):
        chunks = list(conversation.answer(query, DECODING, reply))
        torch.testing.assert_close(torch.cat(chunks), reply.waveform)
    alone = responder.answer(responder.write_text(first), DECODING)
    assert replies[0].text == alone.text and torch.equal(replies[0].speech_tokens, alone.speech_tokens)
    history = History.of([[Turn("user", is_spoken=True), Turn("assistant", alone.text)]], [[first]])
    expected = responder.answer(responder.write_text(second, history=history), DECODING)
    assert replies[1].text == expected.text and torch.equal(replies[1].speech_tokens, expected.speech_tokens)
    assert expected.text != responder.answer(responder.write_text(second), DECODING).text
    assert [turn.text for turn in conversation.turns] == [None, alone.text, None, expected.text]
    conversation.forget()
    again = SpokenReply()
    list(conversation.answer(first, DECODING, again))
    assert again.text == alone.text


def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_was_written() -> None:
    responder = make_llm("ntp").eval().responder
    query = make_batch(0).query
    assert query is not None
    conversation = Conversation(responder)
    chunks = conversation.answer(query[0], DECODING)
    next(chunks)
    chunks.close()
    whole = responder.answer(responder.write_text(query[0]), DECODING).text
    answer = conversation.turns[1].text
    assert answer and whole.startswith(answer) and answer != whole


def test_a_query_without_an_answer_is_forgotten() -> None:
    responder = make_llm("ntp").eval().responder
    query = make_batch(0).query
    assert query is not None
    thinker = responder.thinker
    silent = torch.nn.Linear(thinker.hidden_size, thinker.language_model.vocab_size)
    with torch.no_grad():  # the end of turn is the most probable token, whatever is said
        silent.weight.zero_()
        silent.bias.zero_()[thinker.prompt.end_of_turn_id] = 1.0
    thinker.language_model.causal_lm.set_output_embeddings(silent)
    conversation = Conversation(responder)
    list(conversation.answer(query[0], DECODING))
    assert conversation.turns == [] and conversation.history is None
