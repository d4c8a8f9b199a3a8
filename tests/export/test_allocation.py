"""Types under a budget: the best there are, by trying all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ConfigError
from llmkit.export.quantization.knapsack import Option, allocate

Q4, Q8 = "q4_0", "q8_0"
OPTION = st.builds(
    Option, st.just(Q4), st.integers(1, 40), st.floats(0, 10, allow_nan=False).map(float)
)


@given(st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5), st.data())
def test_no_other_choice_is_better(lists: list[list[Option]], data: st.DataObject) -> None:
    options = {str(number): choices for number, choices in enumerate(lists)}
    smallest = sum(min(option.n_bytes for option in choices) for choices in lists)
    budget = data.draw(st.integers(smallest, smallest + 100))
    chosen = allocate(options, budget)
    assert list(chosen) == list(options)
    assert all(chosen[name] in options[name] for name in options)
    assert sum(option.n_bytes for option in chosen.values()) <= budget
    best = min(
        sum(option.kl for option in choice)
        for choice in itertools.product(*lists)
        if sum(option.n_bytes for option in choice) <= budget
    )
    assert sum(option.kl for option in chosen.values()) == pytest.approx(best)


def test_of_large_sizes_less_than_a_thousandth_is_left() -> None:
    options = {
        str(number): [Option(Q4, 1_000_003, 1.0), Option(Q8, 2_000_017, 0.0)]
        for number in range(20)
    }
    exactly = 13 * 1_000_003 + 7 * 2_000_017
    chosen = allocate(options, exactly + exactly // 1000)
    assert sum(option.kl for option in chosen.values()) == 13


def test_too_little_room_is_said() -> None:
    with pytest.raises(ConfigError, match=r"\b30 bytes\b.*\b29\b"):
        allocate({"a": [Option(Q4, 10, 1.0)], "b": [Option(Q4, 20, 1.0)]}, 29)
    assert allocate({"a": [Option(Q4, 10, 1.0)]}, 10)["a"].n_bytes == 10
