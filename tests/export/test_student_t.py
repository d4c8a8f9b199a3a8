from __future__ import annotations

from statistics import NormalDist

import pytest

from llmkit.export.evaluation.student_t import t_of_95_percent

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975.
TABLE = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 15: 2.131, 20: 2.086, 29: 2.045, 30: 2.042, 39: 2.023, 60: 2.000, 99: 1.984,
    100: 1.984,
}  # fmt: skip


@pytest.mark.parametrize(("degrees", "value"), TABLE.items())
def test_the_quantile_is_the_tables(degrees: int, value: float) -> None:
    assert t_of_95_percent(degrees) == pytest.approx(value, abs=5.1e-4)


def test_of_one_and_two_degrees_it_has_a_closed_form() -> None:
    assert t_of_95_percent(1) == pytest.approx(12.706204736174698, rel=1e-11)  # tan(0.95 pi / 2)
    assert t_of_95_percent(2) == pytest.approx(0.95 * (2 / (1 - 0.95**2)) ** 0.5, rel=1e-11)


def test_it_falls_to_the_normal_distributions() -> None:
    found = [t_of_95_percent(degrees) for degrees in range(1, 300)]
    assert found == sorted(found, reverse=True)
    normal = NormalDist().inv_cdf(0.975)
    assert normal < t_of_95_percent(5000) < normal + 5e-4
