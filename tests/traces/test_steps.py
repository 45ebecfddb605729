"""Steps between a profiler's markers: which event is whose, on one rank and on several, and what their mean holds."""

from typing import Any

import numpy as np
import pytest

from foretrace.traces import Trace, diff_traces, split_steps
from foretrace.traces.repeats import one_step


def marker(number: int | str, start: float, duration: float = 10.0, rank: int = 0) -> dict[str, Any]:
    return {"name": f"ProfilerStep#{number}", "kind": "annotation", "stream": "host 1", "start_s": start,
            "duration_s": duration, "rank": rank}  # fmt: skip


def op(name: str, start: float, rank: int = 0, external_id: int = -1) -> dict[str, Any]:
    return {"name": name, "kind": "cpu_op", "stream": "host 1", "start_s": start, "duration_s": 1.0, "rank": rank,
            "external_id": external_id}  # fmt: skip


def launch(start: float, correlation: int, rank: int = 0) -> dict[str, Any]:
    return {"name": "cudaGraphLaunch", "kind": "launch", "stream": "host 1", "start_s": start, "duration_s": 0.5,
            "correlation": correlation, "rank": rank}  # fmt: skip


def kernel(name: str, start: float, duration: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "kernel", "stream": "gpu", "start_s": start, "duration_s": duration, **more}


def names(trace: Trace) -> list[list[str]]:
    return [sorted(part.name.tolist()) for part in split_steps(trace)]


def test_a_kernel_without_an_operator_is_its_launchs() -> None:
    trace = Trace.from_rows(
        [
            marker(1, 0.0), launch(1.0, 5), kernel("a", 12.0, correlation=5),
            marker(2, 10.0), launch(11.0, 6), kernel("b", 15.0, correlation=6), kernel("nobody's", 16.0),
        ]
    )  # fmt: skip
    assert names(trace) == [["a", "cudaGraphLaunch"], ["b", "cudaGraphLaunch", "nobody's"]]


def test_an_operator_counts_before_a_launch() -> None:
    """A backward kernel's launch may come from another thread; the operator's id is what joins them."""
    trace = Trace.from_rows(
        [marker(1, 0.0), op("aten::mm", 1.0, external_id=3), marker(2, 10.0), launch(11.0, 4),
         kernel("k", 12.0, external_id=3, correlation=4)]
    )  # fmt: skip
    assert names(trace) == [["aten::mm", "k"], ["cudaGraphLaunch"]]


def test_what_was_issued_before_the_first_marker_is_in_no_step() -> None:
    trace = Trace.from_rows(
        [launch(0.0, 1), marker(1, 5.0), kernel("early", 6.0, correlation=1), op("aten::mm", 7.0)],
    )
    assert names(trace) == [["aten::mm"]]


def two_ranks(shift: float = 5.0) -> Trace:
    """Steps 7 and 8 on ranks 0 and 1; the second begins each *shift* later and takes 1 s more."""
    rows = []
    for rank in (0, 1):
        for i, number in enumerate((7, 8)):
            base = 12.0 * i + shift * rank
            rows += [marker(number, base, 10.0 + rank, rank), op(f"aten::op{number}", base + 9.0, rank, external_id=i),
                     kernel(f"k{number}", base + 9.5, 2.0 + i, rank=rank, external_id=i)]  # fmt: skip
    return Trace.from_rows(rows)


@pytest.mark.parametrize("shift", [0.0, 5.0, 1e4])
def test_steps_of_several_ranks_are_joined_by_their_numbers(shift: float) -> None:
    parts = split_steps(two_ranks(shift))
    assert names(two_ranks(shift)) == [["aten::op7", "aten::op7", "k7", "k7"], ["aten::op8", "aten::op8", "k8", "k8"]]
    assert [part.rank.tolist() for part in parts] == [[0, 0, 1, 1]] * 2
    assert [part.step_s for part in parts] == [11.0, 11.0]


def test_ranks_that_marked_other_steps_share_those_of_one_number() -> None:
    late = two_ranks()
    late = late.select(~((late.rank == 0) & late.name.isin(["ProfilerStep#7"])))
    assert [sorted(set(part.rank.tolist())) for part in split_steps(late)] == [[1], [0, 1]]


def test_a_rank_without_markers_has_the_steps_of_another() -> None:
    mine = [marker(1, 0.0), op("a", 1.0), marker(2, 10.5)]
    trace = Trace.from_rows([*mine, op("b", 11.0, rank=3), op("c", 2.0, rank=3)])
    assert names(trace) == [["a", "c"], ["b"]]


def test_markers_of_one_number_are_steps_in_their_order() -> None:
    twice = [marker(1, 0.0), op("a", 1.0), marker(1, 20.0), op("b", 21.0)]
    assert names(Trace.from_rows(twice)) == [["a"], ["b"]]
    trace = Trace.from_rows([*twice, marker("x", 40.0), op("c", 41.0)])
    assert names(trace) == [["a"], ["b"], ["c"]]


def test_two_measured_runs_of_two_ranks_diff_rank_by_rank() -> None:
    def run(shift: float, scale: float) -> Trace:
        trace = two_ranks(shift)
        alike = trace.name.map(lambda n: n if n.startswith("Profiler") else n.rstrip("78"))
        return trace.replace(name=alike, duration_s=np.where(trace.kind.isin(["kernel"]), scale, 1) * trace.duration_s)

    diff = diff_traces(run(5.0, 1.0), run(1e4, 2.0))
    assert diff.alignment.ranks.tolist() == [[0, 0], [1, 1]]
    assert diff.matched_share == 1.0
    assert (diff.alignment.predicted_seconds.sum(), diff.alignment.measured_seconds.sum()) == (5.0, 10.0)  # mean 2.5
    assert (diff.predicted_s, diff.measured_s) == (11.0, 11.0)


def host_ahead() -> Trace:
    """The host issues a step in 10 s, the device takes 12 and begins at 4."""
    rows = []
    for i in range(3):
        rows += [marker(i, 10.0 * i), op("aten::mm", 10.0 * i + 1.0, external_id=i),
                 kernel("sgemm", 4.0 + 12.0 * i, 12.0, external_id=i)]  # fmt: skip
    return Trace.from_rows(rows)


def test_a_device_that_lags_behind_the_host_is_not_idle() -> None:
    """Idle is 0..4 of the first step alone: the other two begin with the device busy on the one before."""
    for activity in diff_traces(host_ahead(), host_ahead()).activity:
        assert (activity.span_s, activity.busy_s, activity.idle_s) == pytest.approx((10.0, 26 / 3, 4 / 3))


def test_activity_is_of_the_steps_that_are_averaged() -> None:
    rows = [marker(9, 30.0, 100.0), op("aten::relu", 31.0, external_id=9)]
    mean, windows = one_step(_with(host_ahead(), rows))
    assert mean.info["repeats"] == 3
    assert windows == [{0: (10.0 * i, 10.0 * i + 10.0)} for i in range(3)]
    assert diff_traces(mean, _with(host_ahead(), rows)).activity[1].span_s == 10.0


def _with(trace: Trace, more: list[dict[str, Any]]) -> Trace:
    columns = {c: v.tolist() for c, v in trace.columns().items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Trace.from_rows([*rows, *more])


def test_memory_is_cut_to_the_step_and_on_its_clock() -> None:
    line = {"time_s": [2.0, 8.0, 14.0, 18.0, 27.0], "allocated_bytes": [5.0, 9.0, 30.0, 4.0, 99.0]}
    trace = host_ahead().replace(info={"memory": line})
    parts = split_steps(trace)
    assert [part.info["memory"]["time_s"] for part in parts] == [[2.0, 8.0], [10.0, 14.0, 18.0], [20.0, 27.0]]
    assert [part.info["memory"]["allocated_bytes"] for part in parts] == [[5.0, 9.0], [9.0, 30.0, 4.0], [4.0, 99.0]]
    mean = one_step(trace)[0]
    assert mean.start_s.min() == 0.0
    assert mean.info["memory"]["time_s"] == [1.0, 7.0]  # of the first step, whose first event is at 1
    assert diff_traces(trace, trace).to_json()["memory"]["measured_peak_bytes"] == 9.0


def test_a_step_of_which_no_memory_is_known_has_none() -> None:
    line = {"time_s": [14.0], "allocated_bytes": [5.0]}
    parts = split_steps(host_ahead().replace(info={"memory": line, "x": 1}))
    assert ["memory" in part.info for part in parts] == [False, True, True]
    assert parts[0].info == {"x": 1}
