"""The Trace type: construction, selection, grouping, nesting."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError
from foretrace.traces import StringColumn, Trace
from foretrace.traces.nesting import _stack_pass, compiled, compute_parents, nesting_order, resolve


def nested() -> Trace:
    rows = [("step", 0, 10), ("a", 0, 4), ("a1", 1, 2), ("b", 4, 6), ("b1", 4, 1), ("b2", 5, 5)]
    return Trace.from_rows(
        [{"name": n, "kind": n[0], "start_s": s, "duration_s": d, "stream": "host"} for n, s, d in rows]
    ).with_parents()


def test_parents_follow_from_times() -> None:
    assert nested().parent.tolist() == [-1, 0, 1, 0, 3, 3]


def test_self_seconds_and_groups_count_every_second_once() -> None:
    trace = nested()
    assert trace.self_s.tolist() == [0, 2, 2, 0, 1, 5]
    assert trace.group_seconds("kind") == {"b": 6.0, "a": 4.0, "s": 0.0}
    assert sum(trace.group_seconds("name").values()) == trace.span_s == 10


def test_select_hands_parents_to_the_nearest_kept() -> None:
    trace = nested().select(np.array([True, False, True, True, False, True]))
    assert trace.name.tolist() == ["step", "a1", "b", "b2"]
    assert trace.parent.tolist() == [-1, 0, 0, 2]
    assert nested().select(np.array([5, 3])).parent.tolist() == [1, -1]


def test_an_event_that_starts_where_another_ends_is_outside() -> None:
    start, duration = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    assert compute_parents(start, duration, np.zeros(3, np.int64)).tolist() == [-1, -1, 0]


def test_partly_overlapping_events_enclose_nothing_of_each_other() -> None:
    start, duration = np.array([0.0, 1.0, 1.5]), np.array([2.0, 2.0, 1.0])
    assert compute_parents(start, duration, np.zeros(3, np.int64)).tolist() == [-1, -1, 1]


def test_rounding_may_let_a_child_end_late() -> None:
    start, duration = np.array([0.0, 9e-6]), np.array([10e-6, 2e-6])
    assert compute_parents(start, duration, np.zeros(2, np.int64), 1e-6).tolist() == [-1, 0]


intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.integers(0, 2)), max_size=40)


@given(intervals)
def test_a_parent_encloses_its_child_on_the_same_stream(rows: list[tuple[int, int, int]]) -> None:
    start, duration, group = (np.array([r[i] for r in rows], np.float64 if i < 2 else np.int64) for i in range(3))
    parent = compute_parents(start, duration, group.astype(np.int64), 0.0)
    for child, above in enumerate(parent.tolist()):
        if above >= 0:
            assert group[child] == group[above]
            assert start[above] <= start[child]
            assert start[child] + duration[child] <= start[above] + duration[above]


@given(intervals)
@settings(deadline=None)
def test_compiled_nesting_is_the_plain_one(rows: list[tuple[int, int, int]]) -> None:
    start, duration, group = (np.array([r[i] for r in rows], np.float64 if i < 2 else np.int64) for i in range(3))
    end = start + duration
    order = nesting_order(group, start, end)
    for set_aside in (False, True):
        plain = _stack_pass(order, group, start, end, 0.0, 0.0, set_aside)
        fast = compiled(_stack_pass)(order, group, start, end, 0.0, 0.0, set_aside)
        assert all(np.array_equal(x, y) for x, y in zip(plain, fast, strict=True))


def test_resolve_ends_on_a_cycle_of_parents() -> None:
    assert resolve(np.array([1, 0, 1]), np.zeros(3, np.bool_)).tolist() == [-1, -1, -1]
    assert resolve(np.array([1, 2, -1]), np.array([False, False, True])).tolist() == [2, 2, 2]
    assert resolve(np.array([1, 2, -1]), np.array([True, False, True]), strict=True).tolist() == [2, 2, -1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"duration_s": [1.0, -1.0]}, "duration_s, row 1: expected a number that is not negative, got -1.0"),
        ({"start_s": [0.0, float("nan")]}, "start_s, row 1: expected a finite number"),
        ({"start_s": [0.0, 1e12]}, "start_s, row 1: expected at most 4e\\+09 seconds"),
        ({"module": ["a"]}, "module: expected 2 rows as in start_s, got 1"),
        ({"parent": [0, -1]}, "parent, row 0"),
        ({"rank": [0, -1]}, "rank, row 1: expected 0 to 1073741823, got -1"),
        ({"rank": 2**31 - 1}, "rank, row 0: expected 0 to"),
        ({"parent": [5, -1]}, "parent, row 0"),
        ({"op_id": ["x", "y"]}, "op_id: expected int64"),
        ({"op_id": [1.5, 2.0]}, "op_id: expected int64"),
        ({"flops": [[1.0], [2.0]]}, "flops: expected one number per event"),
        ({"module": [1, 2]}, "expected strings, got int 1"),
        ({"module": [["a"], ["b"]]}, "not a string"),
        ({"modul": ["a", "b"]}, "unknown trace column 'modul'; nearest: module"),
        ({"name": StringColumn(np.array([0, 3], np.int32), ("a",))}, "a code lies outside"),
    ],
)
def test_columns_that_do_not_hold_are_refused(columns: dict, message: str) -> None:
    good = {"name": ["a", "b"], "start_s": [0.0, 1.0], "duration_s": [1.0, 1.0]}
    with pytest.raises(ForetraceError, match=message):
        Trace.from_columns(good | columns)


@pytest.mark.parametrize(
    "meta",
    [
        {"source": "guessed"},
        {"step_s": -1.0},
        {"step_s": float("inf")},
        {"info": {"warnings": 5}},
        {"info": {"warnings": "cut off"}},
        {"info": {"warnings": None}},
        {"info": {"warnings": ["fine", 5]}},
    ],
)
def test_meta_that_does_not_hold_is_refused(meta: dict) -> None:
    with pytest.raises(ForetraceError):
        Trace.from_columns({"name": [], "start_s": [], "duration_s": []}, **meta)


def test_columns_take_one_value_for_all_and_strings_without_utf8() -> None:
    trace = Trace.from_columns({"name": "a\ud800", "start_s": [0, 1], "duration_s": 1, "kind": ["x\ud800", "x?"]})
    assert trace.duration_s.tolist() == [1.0, 1.0]
    assert trace.kind.tolist() == ["x?", "x?"]


def test_string_columns_compare_by_content() -> None:
    a, b = StringColumn.of(["x", "y", "x"]), StringColumn(np.array([1, 0, 1], np.int32), ("y", "x", "unused"))
    assert a == b
    assert a != StringColumn.of(["x", "y"])
    assert b.used() == ["y", "x"]
    assert a.map(lambda _: "z").values == ("z",)


def test_importing_the_room_brings_no_heavy_module() -> None:
    heavy = {"numba", "pyarrow", "orjson", "rich", "torch", "perfetto"}
    code = f"import sys, foretrace.traces; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_title_that_is_no_utf_8_is_made_one() -> None:
    trace = Trace.from_rows([], title="n\udcff", system="\ud800", model="é")
    assert (trace.title, trace.system, trace.model) == ("n?", "?", "é")
