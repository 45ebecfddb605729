"""Sizes as expressions, from numbers seen at three points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.capture.points import surveys
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
    with pytest.raises(SymbolicError, match="seen"):
        DimSolver(points, FREE).solve((3, None, None))


def test_literals_that_differ_are_refused() -> None:
    solver = DimSolver(choose_points(FREE, {}, {}), FREE)
    assert solver.solve_value([(3, 64), (5, 64), (7, 64)]) == (parse_dim("batch"), 64)
    assert solver.solve_value([0.5, 0.5, 0.5]) == 0.5
    for seen in ([0.5, 0.25, 0.5], ["a", "b", "a"], [(1, 2), (1,), (1, 2)], [True, False, True], [1, "x", 1]):
        with pytest.raises(SymbolicError, match="literal argument"):
            solver.solve_value(seen)


WANTED = {"batch": 1, "seq": 128, "context": 512}
LIMITS = {"batch": None, "seq": None, "context": None}


def test_two_terms_are_found() -> None:
    """An image's 576 tokens in front of the text's."""
    survey = next(surveys(["batch", "seq"], {}, WANTED, LIMITS, []))
    dim = parse_dim("batch*seq + 576*batch")
    found = DimSolver(survey.points, ["batch", "seq"]).solve(tuple(evaluate_dim(dim, p) for p in survey.points))
    assert found == dim


@given(st.integers(110, 4000), st.sampled_from(["{}", "batch*{}", "{} + 1"]))
def test_a_window_the_configuration_names_is_a_minimum(window: int, form: str) -> None:
    free = ["batch", "context"]
    survey = next(surveys(free, {"seq": 1}, WANTED, LIMITS, [window]))
    dim = parse_dim(form.format(f"min(context, {window})"))
    found = DimSolver(survey.points, free, [window]).solve(tuple(evaluate_dim(dim, p) for p in survey.points))
    for context in (1, window - 1, window, window + 1, 100_000):
        at = {"batch": 6, "context": context}
        assert evaluate_dim(found, at) == evaluate_dim(dim, at)


@given(st.sampled_from([64, 128, 256, 512, 2048]), st.integers(1, 9), st.booleans())
def test_whole_chunks_are_counted(chunk: int, scale: int, by_batch: bool) -> None:
    survey = next(surveys(["batch", "seq"], {}, WANTED, LIMITS, [chunk]))
    dim = scale * parse_dim("batch" if by_batch else "1") * parse_dim(f"floordiv(seq + {chunk - 1}, {chunk})")
    solver = DimSolver(survey.points, ["batch", "seq"], [chunk])
    found = solver.solve(tuple(evaluate_dim(dim, p) for p in survey.points))
    for seq in (1, chunk, chunk + 1, 7 * chunk - 1, 9999):
        assert evaluate_dim(found, {"batch": 6, "seq": seq}) == evaluate_dim(dim, {"batch": 6, "seq": seq})


HIDDEN = {
    "half": lambda p, k: p["seq"] // k,
    "window": lambda p, k: min(p["seq"], 40 * k),
    "padded": lambda p, k: -(-p["seq"] // (16 * k)) * 16 * k,
    "power of two": lambda p, k: 1 << (p["seq"] * k - 1).bit_length(),
    "cliff": lambda p, k: p["seq"] if p["seq"] < 60 * k else 3 * p["seq"],
    "remainder": lambda p, k: p["seq"] % (17 * k) + 1,
    "at least": lambda p, k: max(p["seq"], 30 * k),
}


@given(st.sampled_from(sorted(HIDDEN)), st.integers(2, 50), st.integers(1, 4000), st.integers(0, 3))
def test_what_the_configuration_does_not_say_is_refused_or_right(name: str, k: int, seq: int, which: int) -> None:
    """Every survey of a size that no expression of ours is: refused, or right wherever the graph would answer."""
    free = ["batch", "seq"]
    for survey in list(surveys(free, {}, WANTED, LIMITS, []))[which : which + 1]:
        low, high = survey.minimum["seq"], survey.maximum["seq"] or seq
        if not low <= seq <= high:
            continue
        try:
            found = DimSolver(survey.points, free).solve(tuple(HIDDEN[name](p, k) for p in survey.points))
        except SymbolicError:
            continue
        if any(p["seq"] > 1000 for p in survey.points) or name in ("window", "at least", "padded", "power of two"):
            at = {"batch": 4, "seq": seq}
            assert evaluate_dim(found, at) == HIDDEN[name](at, k), (survey, found)
