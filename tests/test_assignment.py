"""The assignment against munkres 1.1.4, whose choice among equal costs is part of the method."""

from importlib.metadata import version

import numpy as np
import pytest
from munkres import Munkres

from utils.assignment import assign


def random_cost(rng, kind, most):
    """A cost (R, C) with R and C up to `most`: without ties, with many, or as grouping makes it."""
    R, C = rng.integers(1, most + 1, 2)
    if kind == 'distinct':
        return rng.uniform(-1, 300, (R, C))
    if kind == 'equal':
        return np.full((R, C), rng.integers(0, 3), float)
    if kind == 'whole':
        return rng.integers(0, 4, (R, C)).astype(float)
    values = np.sort(rng.random((R, 1), dtype=np.float32), 0)[::-1]
    distance = np.abs(rng.normal(0, 1.5, (R, 1)) - rng.normal(0, 1.5, C))
    cost = 100 * distance.round() - values
    return np.pad(cost, ((0, 0), (0, max(R - C, 0))), constant_values=1e10)


def test_the_version_is_part_of_the_method():
    assert version('munkres') == '1.1.4'


@pytest.mark.parametrize('kind', ['distinct', 'equal', 'whole', 'grouping'])
def test_the_pairs_are_those_of_munkres(kind):
    rng = np.random.default_rng(0)
    for number in range(500):
        cost = random_cost(rng, kind, most=30 if number % 20 == 0 else 9)
        before = cost.copy()
        pairs = list(zip(*map(np.ndarray.tolist, assign(cost)), strict=True))
        assert pairs == Munkres().compute(cost.tolist()), f'matrix {number}: {cost.tolist()}'
        np.testing.assert_array_equal(cost, before)


def test_two_rows_that_want_one_column():
    """The shortcut is for rows whose cheapest columns are all different, and only one each."""
    rows, columns = assign(np.array([[0.0, 5.0], [1.0, 3.0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0, 1])
    rows, columns = assign(np.array([[0.0, 1.0], [0.0, 5.0]]))
    assert columns.tolist() == [1, 0]
