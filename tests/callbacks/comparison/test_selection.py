"""The same dialogues are chosen, in whatever order and on however many devices they come."""

from hypothesis import given
from hypothesis import strategies as st

from callbacks.comparison.selection import Selection

dialogues = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 3).map(float), max_size=12)


def select(bad: dict[str, float], names: list[str], num_random: int, num_worst: int) -> Selection[str]:
    selection: Selection[str] = Selection(num_random, num_worst)
    for name in names:
        selection.offer(name, bad[name], name.upper())
    return selection


@given(bad=dialogues, data=st.data(), num_random=st.integers(0, 4), num_worst=st.integers(0, 4))
def test_order_and_devices_do_not_matter(
    bad: dict[str, float], data: st.DataObject, num_random: int, num_worst: int
) -> None:
    names = sorted(bad)
    whole = select(bad, names, num_random, num_worst)
    shuffled = data.draw(st.permutations(names))
    cut = data.draw(st.integers(0, len(names)))
    parts = [select(bad, part, num_random, num_worst) for part in (shuffled[:cut], shuffled[cut:])]
    merged: Selection[str] = Selection(num_random, num_worst)
    merged.merge(parts)
    for one in (merged, select(bad, shuffled, num_random, num_worst)):
        assert one.worst() == whole.worst() and one.at_random() == whole.at_random()
    assert len(whole.worst()) == min(num_worst, len(bad)) and len(whole.at_random()) == min(num_random, len(bad))
    worst = [bad[name.lower()] for name in whole.worst()]
    assert worst == sorted(bad.values(), reverse=True)[:num_worst]


def test_memory_holds_no_more_than_is_asked_for() -> None:
    bad = {f"dialogue {number}": float(number % 7) for number in range(200)}
    selection = select(bad, [*bad], 3, 2)
    assert len(selection._candidates) <= 5
    selection.clear()
    assert selection.worst() == selection.at_random() == []


def test_those_at_random_do_not_depend_on_errors() -> None:
    names = [f"dialogue {number}" for number in range(50)]
    kept = [select(dict.fromkeys(names, 0.0) | changed, names, 5, 5).at_random() for changed in ({}, {names[7]: 3.0})]
    assert kept[0] == kept[1] and kept[0] != [name.upper() for name in names[:5]]
