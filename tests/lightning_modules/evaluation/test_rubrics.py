"""What a judge is asked, and verdicts that can and cannot be read."""

import pytest

from lightning_modules.evaluation.rubrics import CORRECT, RATING, RATING_WITH_REFERENCE


def test_texts_stand_where_they_belong_whatever_is_in_them() -> None:
    text = RATING_WITH_REFERENCE.render("Why {reply}?", "So {question}.", ("a", "b"))
    assert "Question:\nWhy {reply}?\n\nReference:\na / b\n\nAnswer:\nSo {question}.\n" in text
    assert "{" not in RATING.render("q", "r") and "Answer:\nr\n" in RATING.render("q", "r")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("4", 4.0),
        (" **5** ", 5.0),
        ("Score: 3", 3.0),
        ("The final rating is 2.", 2.0),
        ("[[4]]", 4.0),
        ("4/5", 4.0),
        ("4 out of 5", 4.0),
        ("6", None),
        ("4.5", None),
        ("On a scale of 1 to 5, it is a 4", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_only_if_it_stands_alone(answer: str, score: float | None) -> None:
    assert RATING.score(answer) == score


def test_yes_and_no() -> None:
    assert (CORRECT.score("Yes."), CORRECT.score("no"), CORRECT.score("perhaps")) == (1.0, 0.0, None)
    assert CORRECT.verdicts == ("no", "yes")
