"""Checks against signatures, and building, with classes made for the purpose."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from experiments.engine.configuration.annotations import accepts
from experiments.engine.configuration.builder import build
from experiments.engine.configuration.checks import check_arguments, check_value
from experiments.engine.configuration.errors import ConfigError, is_users_mistake
from lightning_modules.errors import UserError
from tests.experiments.engine.toy import FailingJob

TOY = "tests.experiments.engine.toy"


@dataclass(frozen=True)
class Sampler:
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; give 0 or more")


@dataclass(frozen=True)
class Decoding:
    talker: str
    levels: tuple[float, ...] = ()
    sampler: Sampler | None = None


class Speaker(Protocol):
    def speak(self) -> str: ...


class Everything:
    def __init__(
        self,
        count: int,
        rate: float = 1.0,
        name: str | None = None,
        kind: Literal["a", "b"] = "a",
        where: Path | None = None,
        levels: tuple[int, ...] = (),
        pair: tuple[int, str] = (1, "x"),
        parts: dict[str, nn.Module] | None = None,
        rows: Sequence[float] = (),
        old: Optional[list[str]] = None,  # noqa: UP045
        speaker: Speaker | None = None,
        call: Callable[[int], int] | None = None,
        decodings: dict[str, Decoding | None] | None = None,
        samplers: Sequence[Sampler] = (),
        untyped=None,  # noqa: ANN001
    ) -> None:
        self.__dict__.update(locals())

    @classmethod
    def small(cls, count: int = 2) -> "Everything":
        return cls(count)


HERE = f"{__name__}.Everything"


def check(**arguments: Any) -> None:
    check_arguments(Everything, {"count": 1, **arguments}, "module.init_args")


GOOD: list[dict[str, Any]] = [
    {"rate": 2},
    {"rate": 0.5},
    {"name": "x"},
    {"name": None},
    {"kind": "b"},
    {"where": "/tmp"},
    {"levels": [8, 5]},
    {"pair": [1, "y"]},
    {"parts": {"a": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 2}}}},
    {"rows": [1, 2.5]},
    {"old": ["a"]},
    {"speaker": {"class_path": HERE, "init_args": {"count": 1}}},
    {"call": {"class_path": "torch.nn.Identity"}},
    {"decodings": {"fast": {"talker": "a", "sampler": {"temperature": 2}}, "left_out": None}},
    {"decodings": {"fast": {"talker": "a", "sampler": {"class_path": f"{__name__}.Sampler"}}}},
    {"samplers": [{}, {"temperature": 0.5}]},
    {"untyped": [{"a": 1}]},
]


@pytest.mark.parametrize("arguments", GOOD)
def test_good_arguments_pass(arguments: dict[str, Any]) -> None:
    check(**arguments)
    built = build({"class_path": HERE, "init_args": {"count": 1, **arguments}}, "")
    assert built.count == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"count": 1.5}, r"^module.init_args.count: expected int, got 1.5$"),
    ({"count": True}, r"count: expected int, got True"),
    ({"count": "1"}, r"count: expected int, got '1'"),
    ({"count": None}, r"count: expected int, got null"),
    ({"count": "???"}, r"count: a value is needed here; .* module.init_args.count=VALUE$"),
    ({"rate": False}, r"rate: expected float, got False"),
    ({"name": 3}, r"name: expected str or null, got 3"),
    ({"kind": "c"}, r"kind: expected 'a' or 'b', got 'c'"),
    ({"where": 3}, r"where: expected Path or null, got 3"),
    ({"levels": 8}, r"levels: expected tuple\[int, ...\], got 8"),
    ({"levels": [8, "x"]}, r"^module.init_args.levels.1: expected int, got 'x'$"),
    ({"pair": [1]}, r"pair: expected tuple\[int, str\], got \[1\]"),
    ({"parts": {"a": 3}}, r"parts.a: expected Module, got 3; describe the object by class_path"),
    (
        {"parts": {"a": {"class_path": f"{TOY}.ToyJob"}}},
        r"parts.a.class_path: expected a Module, but .*ToyJob is not one",
    ),
    (
        {"parts": {"a": {"class_path": "torch.nn.Linear", "init_args": {"in_featurs": 1}}}},
        r"did you mean in_features\?",
    ),
    ({"parts": {"a": {"class_path": "torch.nn.Linear"}}}, r"parts.a.init_args.in_features: Linear needs this argument"),
    (
        {"parts": {"a": {"class_path": "torch.nn.Identity", "args": 1}}},
        r"parts.a.args: beside class_path there can only",
    ),
    ({"parts": {"a": {"class_path": "torch.nn.Identity", "init_args": 1}}}, r"a.init_args: expected a mapping"),
    ({"parts": {"a": {"class_path": "torch.nn.Identiy"}}}, r"torch.nn has no Identiy; did you mean Identity\?"),
    ({"parts": {"a": {"class_path": "trch.nn.Identity"}}}, r"there is no module trch"),
    ({"parts": {"a": {"class_path": "Identity"}}}, r"there is no module|has no|dotted"),
    ({"parts": {"a": {"class_path": 3}}}, r"expected a dotted name"),
    ({"parts": {"a": {"class_path": "torch.nn.__name__"}}}, r"is not a class or function"),
    ({"rows": "abc"}, r"rows: expected Sequence\[float\], got 'abc'"),
    ({"old": [1]}, r"old.0: expected str, got 1"),
    ({"decodings": {"fast": {}}}, r"^module.init_args.decodings.fast.talker: Decoding needs this argument"),
    (
        {"decodings": {"fast": {"talkr": "a"}}},
        r"decodings.fast.talkr: Decoding has no argument talkr; did you mean talk",
    ),
    (
        {"decodings": {"fast": {"talker": "a", "sampler": {"temperature": "x"}}}},
        r"^module.init_args.decodings.fast.sampler.temperature: expected float, got 'x'$",
    ),
    ({"decodings": {"fast": 3}}, r"decodings.fast: expected Decoding or null, got 3; give a mapping of its arguments"),
    ({"samplers": [None]}, r"samplers.0: expected Sampler, got null; give a mapping of its arguments"),
    ({"parts": {"a": {"in_features": 1}}}, r"parts.a: expected Module, got {.*}; describe the object by class_path"),
    ({"cuont": 3}, r"^module.init_args.cuont: Everything has no argument cuont; did you mean count\?$"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(**arguments)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^x.count: Everything needs this argument; give it a value$"):
        check_arguments(Everything, {}, "x")


def test_yaml_values_are_converted() -> None:
    node = {"count": 1, "where": "/tmp", "levels": [8, 5], "rate": 2, "rows": [1]}
    built = build({"class_path": HERE, "init_args": node}, "")
    assert built.where == Path("/tmp") and built.levels == (8, 5)
    assert isinstance(built.rate, float)


def test_a_plain_mapping_becomes_the_dataclass_that_is_asked_for() -> None:
    decodings = {"fast": {"talker": "a", "levels": [1, 2], "sampler": {"temperature": 2}}, "left_out": None}
    built = build({"class_path": HERE, "init_args": {"count": 1, "decodings": decodings, "samplers": [{}]}}, "")
    assert built.decodings == {"fast": Decoding("a", (1.0, 2.0), Sampler(2.0)), "left_out": None}
    assert built.samplers == [Sampler()]
    refused = {"class_path": HERE, "init_args": {"count": 1, "samplers": [{}, {"temperature": -1}]}}
    with pytest.raises(ConfigError, match=r"^module.init_args.samplers.1: temperature is -1.0; give 0 or more$"):
        build(refused, "module")


def test_classmethods_and_functions_are_called() -> None:
    assert build({"class_path": f"{HERE}.small"}, "").count == 2
    assert build([{"class_path": "math.sqrt"}] * 0, "") == []


def test_what_a_constructor_refuses_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^job.parts.0: number is -1; give 0 or more$"):
        build({"parts": [{"class_path": f"{TOY}.ToyJob", "init_args": {"number": -1}}]}, "job")


@pytest.mark.parametrize(("kind", "is_mistake"), [("user", True), ("missing", True), ("defect", False)])
def test_a_mistake_is_told_from_a_defect(tmp_path: Path, kind: str, is_mistake: bool) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        FailingJob(kind).run(tmp_path)
    assert is_users_mistake(caught.value) == is_mistake


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab 1", max_size=3)


@given(plain, st.sampled_from([int, float, bool, str, type(None)]))
def test_plain_types_are_told_apart(value: Any, kind: type) -> None:
    expected = type(value) is kind or (kind is float and type(value) is int)
    assert accepts(value, kind) == expected
    assert accepts(value, kind | None) == (expected or value is None)
    assert accepts([value], list[kind])  # type: ignore[valid-type]
    if not expected:
        with pytest.raises(ConfigError):
            check_value([value], list[kind], "x")  # type: ignore[valid-type]


@given(
    st.lists(st.integers()), st.sampled_from([list, tuple[int, ...], Sequence[int], Iterable[int], list[int] | None])
)
def test_conversion_keeps_what_fits(value: list[int], annotation: Any) -> None:
    assert accepts(value, annotation)
    assert list(build(value, "", annotation)) == value
