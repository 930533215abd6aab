"""The normaliser of word error rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.evaluation.text_normalization import normalize_text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  It's ten-thirty,\n O.K.? ", "it's ten thirty o k"),
        ("Don’t 'quote' me", "don't quote me"),
        ("Café NAÏVE", "cafe naive"),
        ("Room 7b", "room 7b"),
        ("...", ""),
        ("", ""),
    ],
)
def test_examples(text, normal):
    assert normalize_text(text) == normal


@given(st.text())
def test_idempotent_and_clean(text):
    normal = normalize_text(text)
    assert normalize_text(normal) == normal
    assert set(normal) <= set("abcdefghijklmnopqrstuvwxyz0123456789' ")
    assert normal == " ".join(normal.split())
