"""Dialogues of several turns from the corpus to the reply: settings, stage 1, text states, the comparison of a test."""

from pathlib import Path

import lightning as L
import pytest
import torch

from datamodules.batch import collate
from datamodules.formats.released_layout import ReleasedLayout
from datamodules.shards.text_state_files import TextStateFiles
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import check_value
from experiments.engine.configuration.errors import ConfigError
from experiments.jobs.text_state_writer import TextStateWriter
from lightning_modules.inference.responder import Responder
from lightning_modules.speech_llm import SpeechLLM
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker
from tests.datamodules.tiny_corpus import write_dialogues, write_index
from tests.lightning_modules.talker.conftest import NUM_CODES
from tests.lightning_modules.test_speech_llm import make_llm, make_thinker
from tests.lightning_modules.thinker.tiny import make_tokenizer


def make_data(root: Path) -> SpokenDialogueDataModule:
    return SpokenDialogueDataModule(
        str(root), fields=["query", "units"], batch_size=2, validation_index="train.json", test_index="train.json"
    )


def layout(root: Path, fields: list[str], **settings: Path) -> ReleasedLayout:
    return ReleasedLayout(root / "spoken_examples/train.json", root, fields=fields, **settings)


def fit(root: Path) -> SpeechLLM:
    llm = make_llm("ntp", thinker_objective=ThinkerObjective(), decodings={"ntp": Decoding("ntp", 8)})
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.fit(llm, make_data(root))
    return llm


@pytest.mark.filterwarnings("ignore:Found .* in eval mode", "ignore:The replies .* have more text than the anchors")
def test_a_thinker_trains_on_a_corpus_of_several_turns_and_answers_it(tmp_path: Path) -> None:
    items = write_dialogues(tmp_path, "train", num_codes=NUM_CODES)
    llm = fit(tmp_path)
    single = []
    for item in items:  # the same queries and replies, without what was said before
        paths = item["speech"] if isinstance(item["speech"], list) else [item["speech"]]
        single.append({**item, "speech": paths[-1], "conversations": item["conversations"][-2:]})
    write_index(tmp_path, "train", single)
    weight = llm.thinker.adaptor.up.weight
    assert not torch.equal(fit(tmp_path).thinker.adaptor.up.weight, weight)
    write_index(tmp_path, "train", items)
    assert torch.equal(fit(tmp_path).thinker.adaptor.up.weight, weight)

    batch = collate([layout(tmp_path, ["query"])[place] for place in range(4)])
    replies = llm.eval().test_step(batch, 0)
    responder = llm.responder
    for row, (query, history) in enumerate(batch.queries()):
        expected = responder.answer(responder.write_text(query, history=history), Decoding("ntp", 8))
        assert replies[row]["ntp"].text == expected.text
        assert torch.equal(replies[row]["ntp"].speech_tokens, expected.speech_tokens)


def test_text_states_are_those_of_the_whole_dialogue(tmp_path: Path) -> None:
    write_dialogues(tmp_path, "train")
    examples = layout(tmp_path, ["query"])
    TextStateWriter(make_thinker(), {"train": examples}, batch_size=3, bfloat16=False).run(tmp_path / "out")
    folder = str(tmp_path / "out" / examples.index.parent.name)
    stored = TextStateFiles.open(folder, examples.ids, str(examples.index))
    thinker, differences = make_thinker().eval(), []
    for place in range(4):
        batch = collate([examples[place]])
        with torch.no_grad():
            own = batch.query, batch.query_lengths, batch.reply_texts
            output, without = thinker(*own, history=batch.history), thinker(*own)
        hidden = stored.read(place, batch.reply_texts[0]).hidden.float()
        torch.testing.assert_close(hidden, output.hidden[0], rtol=2**-8, atol=1e-5)
        differences.append(float((output.hidden[0] - without.hidden[0]).abs().max()) > 1e-3)
    assert differences == [True, True, True, False], "the last dialogue begins with its query"


def thinker_spec(tokenizer: Path, **dialogue: object) -> dict:
    sizes = {"width": 32, "num_layers": 1, "num_heads": 2, "feed_forward_width": 32}
    room = "lightning_modules.thinker"
    return {
        "class_path": f"{room}.thinker.Thinker",
        "init_args": {
            "speech_encoder": {"class_path": f"{room}.speech_encoder.SpeechEncoder.from_config", "init_args": sizes},
            "adaptor": {"class_path": f"{room}.adaptor.Adaptor", "init_args": {"input_size": 32, "output_size": 32}},
            "language_model": {
                "class_path": f"{room}.language_model.LanguageModel.from_config",
                "init_args": {"vocab_size": 304, **sizes},
            },
            "tokenizer": str(tokenizer),
            "dialogue": dialogue,
        },
    }


def test_settings_of_dialogues_are_written_in_yaml(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    given = {"max_context_tokens": 64, "drop_oldest_turns": True, "blank_token": "<|im_start|>"}
    thinker = build(thinker_spec(tmp_path, **given, template_variables={"enable_thinking": True}), "thinker", Thinker)
    assert thinker.context.max_tokens == 64 and thinker.context.drop_oldest_turns
    assert thinker.prompt.blank_id == make_tokenizer().convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(ConfigError, match="max_context_tokens is 0"):
        build(thinker_spec(tmp_path, max_context_tokens=0), "thinker", Thinker)
    with pytest.raises(ConfigError, match="drop_oldest"):
        check_value(thinker_spec(tmp_path, drop_oldest=True), Thinker, "thinker")


def test_a_responder_gives_the_context_room_for_the_reply(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    thinker = build(thinker_spec(tmp_path, max_context_tokens=40), "thinker", Thinker)
    assert thinker.encode(torch.zeros(8000)).embeddings.shape[1] < 40
    with pytest.raises(ValueError, match="and 39 tokens for the reply, but there is room for 40"):
        Responder(thinker, {}, make_llm("ntp").vocoder, max_text_tokens=39).write_text(torch.zeros(8000))  # type: ignore[arg-type]
