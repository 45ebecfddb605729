"""The waterfall: what lies between the two totals adds up to their difference, whatever the traces are."""

from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.traces import Trace, diff_traces

rows = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["aten::mm", "aten::add", "ncclKernel_AllReduce"]),
            "kind": st.sampled_from(["matmul", "collective", "launch", "copy"]),
            "module": st.sampled_from(["", "h.0", "h.1"]),
            "stream": st.sampled_from(["host", "compute", "communication"]),
            "rank": st.integers(0, 1),
            "start_s": st.floats(0, 100),
            "duration_s": st.floats(0, 10),
        }
    ),
    max_size=20,
)


@given(rows, rows, st.none() | st.floats(0, 100))
def test_steps_add_up_to_the_measured_total(a: list[dict], b: list[dict], step_s: float | None) -> None:
    diff = diff_traces(Trace.from_rows(a, step_s=step_s), Trace.from_rows(b))
    first, *between, last = diff.waterfall
    assert (first.seconds, last.seconds) == (diff.predicted_s, diff.measured_s)
    assert fsum([first.seconds, *(s.seconds for s in between)]) == pytest.approx(last.seconds, abs=1e-12)


def test_a_trace_against_itself_falls_nowhere() -> None:
    trace = Trace.from_rows(
        [{"name": "aten::mm", "kind": "matmul", "start_s": i, "duration_s": 0.5, "stream": "compute"} for i in range(3)]
    )
    assert [s.seconds for s in diff_traces(trace, trace).waterfall[1:-1]] == [0.0] * 7


def test_each_step_takes_what_is_its_own() -> None:
    def side(mm: float, comm_start: float, late: float) -> Trace:
        return Trace.from_rows(
            [
                {"name": "aten::mm", "kind": "matmul", "stream": "compute", "start_s": 0, "duration_s": mm, "op_id": 0},
                {"name": "all_reduce", "kind": "collective", "stream": "communication", "start_s": comm_start,
                 "duration_s": 4.0, "op_id": 1},
                {"name": "aten::add", "kind": "elementwise", "stream": "compute", "start_s": late, "duration_s": 1.0,
                 "op_id": 2},
            ]
        )  # fmt: skip

    before, after = side(4.0, 2.0, 6.0), side(6.0, 5.0, 11.0)
    steps = {s.label: s.seconds for s in diff_traces(before, after).waterfall}
    assert steps == {
        "predicted step": 7.0,
        "kernels: matmul": 2.0,
        "kernels: elementwise": 0.0,
        "only predicted": 0.0,
        "only measured": 0.0,
        "launch gaps": 0.0,
        "exposed communication": 1.0,  # 4..6 before, 6..9 after
        "idle": 2.0,  # 9..11
        "other": 0.0,
        "measured step": 12.0,
    }


def test_of_ranks_only_those_that_were_aligned_count() -> None:
    def rank(number: int, mm: float, late: float) -> list[dict]:
        return [
            {"name": "aten::mm", "kind": "matmul", "stream": "compute", "start_s": 0.0, "duration_s": mm, "op_id": 0,
             "rank": number},
            {"name": "aten::add", "kind": "elementwise", "stream": "compute", "start_s": late, "duration_s": 1.0,
             "op_id": 1, "rank": number},
        ]  # fmt: skip

    one, two = Trace.from_rows(rank(0, 4.0, 4.0)), Trace.from_rows([*rank(0, 6.0, 8.0), *rank(1, 6.0, 50.0)])
    diff = diff_traces(one, two)
    assert diff.alignment.ranks.tolist() == [[0, 0]]
    steps = {s.label: s.seconds for s in diff.waterfall}
    assert (steps["kernels: matmul"], steps["idle"]) == (2.0, 2.0)  # the second rank's 44 s are in no operator's sum
    assert diff.activity[1].span_s == 9.0
    both = diff_traces(two, Trace.from_rows([*rank(0, 9.0, 11.0), *rank(1, 7.0, 51.0)]))
    assert both.alignment.ranks.tolist() == [[0, 0], [1, 1]]
    assert {s.label: s.seconds for s in both.waterfall}["kernels: matmul"] == 2.0


def test_ranks_without_any_match_are_counted_too() -> None:
    def ranks(name: str) -> Trace:
        return Trace.from_rows(
            [{"name": name, "kind": "kernel", "start_s": 0.0, "duration_s": 2.0, "rank": r} for r in (0, 1)]
        )

    steps = {s.label: s.seconds for s in diff_traces(ranks("sgemm"), ranks("softmax")).waterfall}
    assert (steps["only predicted"], steps["only measured"]) == (-2.0, 2.0)  # of a rank, as the totals are
