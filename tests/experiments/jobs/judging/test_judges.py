"""Judges: the verdict that a small language model finds likeliest, and a local server of chat completions."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experiments.jobs.judging.causal_lm_judge import CausalLmJudge
from experiments.jobs.judging.endpoint_judge import EndpointJudge
from experiments.jobs.judging.judge import JudgeRequest
from lightning_modules.errors import UserError
from tests.experiments.jobs.judging.endpoint import serve
from tests.lightning_modules.thinker.tiny import make_tokenizer

FIVE = ("1", "2", "3", "4", "5")


def write_judge(folder: Path, seed: int = 0, max_positions: int = 2048) -> Path:
    """Write a language model with random weights as save_pretrained does."""
    make_tokenizer().save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=304, max_position_embeddings=max_positions, initializer_range=1.0, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def requests(count: int = 6, verdicts: tuple[str, ...] = FIVE) -> list[JudgeRequest]:
    return [JudgeRequest(str(i), "You grade.", f"Question {i}? " * (i + 1), verdicts) for i in range(count)]


@pytest.mark.parametrize("verdicts", [FIVE, ("no", "yes")])
def test_a_language_model_says_what_it_finds_likeliest(tmp_path: Path, verdicts: tuple[str, ...]) -> None:
    """By hand: the mean loss of transformers, times its tokens, over prompt and verdict as one text."""
    folder = write_judge(tmp_path)
    found = dict(CausalLmJudge(folder, bfloat16=False).ask(requests(verdicts=verdicts)))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    for request, said in found.items():
        messages = [{"role": "system", "content": "You grade."}, {"role": "user", "content": request.text}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        losses = {}
        for verdict in verdicts:
            ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, verdict)]
            labels = torch.tensor([[-100] * len(ids[0]) + ids[1]])
            with torch.no_grad():
                loss = model(torch.tensor([ids[0] + ids[1]]), labels=labels).loss
            losses[verdict] = float(loss) * len(ids[1])
        assert said == min(losses, key=losses.__getitem__)
    assert len(found) == 6 and len(set(found.values())) > 1


def test_a_language_model_is_told_apart_by_its_weights(tmp_path: Path) -> None:
    first, second = (CausalLmJudge(write_judge(tmp_path / str(seed), seed)).describe() for seed in (0, 1))
    assert first["weights"] != second["weights"] and first["name"] == "0"
    (tmp_path / "0").rename(tmp_path / "moved")
    assert CausalLmJudge(tmp_path / "moved").describe()["weights"] == first["weights"]
    with pytest.raises(FileNotFoundError, match="give a folder that save_pretrained wrote"):
        CausalLmJudge(tmp_path).describe()


def test_a_request_that_is_too_long_gets_no_verdict(tmp_path: Path) -> None:
    judge = CausalLmJudge(write_judge(tmp_path, max_positions=60))
    said = [text for _, text in judge.ask(requests())]
    assert said[0] in FIVE and said[-1].startswith("no verdict: a request of ") and said[-1].endswith("reads 60")


def test_an_endpoint_is_asked_in_parallel_and_again_while_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "abc")
    with serve(lambda number, prompt: 503 if number % 3 == 0 else prompt[9]) as served:
        settings = {"api_key_variable": "JUDGE_KEY", "num_parallel": 4, "first_wait_s": 0.01}
        found = list(EndpointJudge(served.address + "/", "grader", **settings).ask(requests()))
    assert {request.key: said for request, said in found} == {str(i): str(i) for i in range(6)}
    assert len(served.bodies) > 6 and set(served.keys) == {"Bearer abc"}
    body = served.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader", 0, 16)
    assert body["messages"][0] == {"role": "system", "content": "You grade."}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (401, "refuses a request with status 401 .*check address, model .'grader'. and api_key_variable"),
        (500, "failed 2 times .status 500: told to fail.; start it or fix the address. Verdicts so far are kept"),
        ({"error": "x"}, "answers with .* no chat completion"),
        (b"<html>busy</html>", "answers with <html>busy</html>, which is no chat completion"),
    ],
)
def test_an_endpoint_that_fails_is_told(answer: int, message: str) -> None:
    with serve(lambda number, prompt: answer) as served:
        judge = EndpointJudge(served.address, "grader", num_attempts=2, first_wait_s=0.01)
        with pytest.raises(UserError, match=message):
            list(judge.ask(requests()))
    assert len(served.bodies) <= 12


def test_an_endpoint_that_is_not_there_is_told() -> None:
    with serve(lambda number, prompt: "1") as served:
        pass
    judge = EndpointJudge(served.address, "grader", num_attempts=2, first_wait_s=0.01)
    with pytest.raises(UserError, match="failed 2 times .ClientConnectorError"):
        list(judge.ask(requests()))
    with pytest.raises(UserError, match="JUDGE_KEY_THAT_IS_NOT_SET is not set"):
        list(EndpointJudge(served.address, "grader", api_key_variable="JUDGE_KEY_THAT_IS_NOT_SET").ask(requests()))
    with pytest.raises(UserError, match="give one such as http"):
        EndpointJudge("localhost:8000", "grader")
