"""Sizes as expressions, from numbers seen at three points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.capture.symbolic import DimSolver, SymbolicError, choose_points
from foretrace.ir import evaluate_dim, parse_dim

FREE = ["batch", "seq", "context"]
FORMS = ["batch", "seq", "context + seq", "batch*seq", "batch*context + batch*seq", "seq*seq", "batch*seq*seq"]


@given(st.sampled_from(FORMS), st.integers(1, 20000), st.integers(-1, 64))
def test_the_expression_behind_the_numbers_is_found(form: str, scale: int, offset: int) -> None:
    dim = parse_dim(form) * scale + offset
    points = choose_points(FREE, {}, {})
    found = DimSolver(points, FREE).solve(tuple(evaluate_dim(dim, p) for p in points))
    elsewhere = {"batch": 11, "seq": 1000, "context": 4096}
    assert evaluate_dim(found, elsewhere) == evaluate_dim(dim, elsewhere)


def test_constants_stay_constants() -> None:
    points = choose_points(FREE, {}, {})
    assert DimSolver(points, FREE).solve((4096, 4096, 4096)) == 4096


def test_the_confirming_point_takes_the_wanted_sizes() -> None:
    assert choose_points(["batch", "seq"], {"context": 7}, {"batch": 1, "seq": 2048})[2] == {
        "batch": 1,
        "seq": 2048,
        "context": 7,
    }


def test_numbers_no_expression_gives_are_refused() -> None:
    points = choose_points(FREE, {}, {})
    with pytest.raises(SymbolicError, match="no expression gives 3 at"):
        DimSolver(points, FREE).solve((3, 100, 7))


def test_a_size_seen_once_is_not_guessed() -> None:
    points = choose_points(FREE, {}, {})
    with pytest.raises(SymbolicError, match="was not seen at the others"):
        DimSolver(points, FREE).solve((3, None, None))


def test_literals_that_differ_are_refused() -> None:
    solver = DimSolver(choose_points(FREE, {}, {}), FREE)
    assert solver.solve_value([(3, 64), (5, 64), (7, 64)]) == (parse_dim("batch"), 64)
    assert solver.solve_value([0.5, 0.5, 0.5]) == 0.5
    for seen in ([0.5, 0.25, 0.5], ["a", "b", "a"], [(1, 2), (1,), (1, 2)], [True, False, True], [1, "x", 1]):
        with pytest.raises(SymbolicError, match="literal argument"):
            solver.solve_value(seen)
