"""Activity: busy, overlapped, exposed and idle time of small timelines worked out by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.traces import Trace
from foretrace.traces.compare.activity import measure_activity


def kernel(start: float, duration: float, name: str = "gemm", correlation: int = -1, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "kernel", "stream": "gpu 0 stream 7", "start_s": start, "duration_s": duration,
            "correlation": correlation, **more}  # fmt: skip


def launch(start: float, duration: float, correlation: int) -> dict[str, Any]:
    return {"name": "cudaLaunchKernel", "kind": "launch", "stream": "host 1", "start_s": start,
            "duration_s": duration, "correlation": correlation}  # fmt: skip


def test_compute_communication_and_copies_of_a_device() -> None:
    found = measure_activity(
        Trace.from_rows(
            [
                kernel(0, 4), kernel(2, 4, "ncclDevKernel_AllReduce", stream="gpu 0 stream 9"),
                kernel(7, 1, "Memcpy HtoD") | {"kind": "copy"}, kernel(8, 2),
            ]
        )
    )  # fmt: skip
    assert (found.span_s, found.busy_s, found.idle_s, found.kernels) == (10.0, 9.0, 1.0, 4)
    assert (found.compute_s, found.communication_s, found.copy_s) == (6.0, 4.0, 1.0)
    assert (found.exposed_communication_s, found.overlapped_communication_s) == (2.0, 2.0)
    assert (found.launch_idle_s, found.other_idle_s) == (0.0, 1.0)


def test_idle_before_work_that_was_launched_too_late_is_the_hosts() -> None:
    found = measure_activity(
        Trace.from_rows(
            [
                launch(0, 1, 1), kernel(2, 2, correlation=1),  # 0..2: nothing was issued
                launch(1, 1, 2), kernel(5, 1, correlation=2),  # 4..5: issued at 2, waits for something else
                launch(6, 1, 3), kernel(8, 2, correlation=3),  # 6..8: issued while the device was dry
                launch(9, 3, 4),
            ]
        )
    )  # fmt: skip
    assert (found.idle_s, found.launch_idle_s, found.other_idle_s) == (7.0, 4.0, 3.0)
    assert found.host_s == 6.0


def test_a_predicted_launch_is_joined_to_its_kernel() -> None:
    rows = [
        {"name": "mm", "kind": "launch", "stream": "host", "start_s": 0.0, "duration_s": 3.0, "correlation": 0},
        {"name": "mm", "kind": "matmul", "stream": "compute", "start_s": 3.0, "duration_s": 1.0, "correlation": 0,
         "op_id": 0},
    ]  # fmt: skip
    found = measure_activity(Trace.from_rows(rows))
    assert (found.compute_s, found.launch_idle_s, found.host_s, found.kernels) == (1.0, 3.0, 3.0, 1)


def test_without_a_device_the_host_is_the_device() -> None:
    rows = [{"name": "aten::mm", "kind": "cpu_op", "start_s": s, "duration_s": 1.0, "stream": "host 1"} for s in (0, 3)]
    found = measure_activity(Trace.from_rows(rows))
    assert (found.busy_s, found.compute_s, found.idle_s, found.launch_idle_s) == (2.0, 2.0, 2.0, 0.0)


def test_of_several_ranks_seconds_are_the_mean() -> None:
    found = measure_activity(Trace.from_rows([kernel(0, 4), kernel(100, 2, rank=1), kernel(104, 2, rank=1)]))
    assert (found.span_s, found.compute_s, found.idle_s, found.kernels) == (5.0, 4.0, 1.0, 3)


def test_in_the_windows_of_steps_all_that_runs_counts() -> None:
    """The host runs ahead: what the first step issues last runs until 13, in the second one's window."""
    trace = Trace.from_rows(
        [
            launch(1, 1, 1), kernel(4, 2, correlation=1), launch(2, 1, 2), kernel(6, 7, correlation=2),
            launch(11, 1, 3), kernel(13, 4, correlation=3), launch(18, 1, 4), kernel(19, 1, correlation=4),
        ]
    )  # fmt: skip
    found = measure_activity(trace, [{0: (0.0, 10.0)}, {0: (10.0, 20.0)}])
    assert (found.span_s, found.busy_s, found.compute_s) == (10.0, 7.0, 7.0)  # 6 and 8
    assert (found.idle_s, found.launch_idle_s, found.other_idle_s) == (3.0, 3.0, 0.0)  # 0..4, then 17..19
    assert (found.host_s, found.kernels) == (2.0, 2)
    second = measure_activity(trace, [{0: (10.0, 20.0)}])
    assert (second.busy_s, second.idle_s) == (8.0, 2.0)


def test_operators_of_a_replayed_cuda_graph_are_no_work_of_the_host() -> None:
    operator = {"name": "aten::mm", "kind": "cpu_op", "stream": "cuda graph", "start_s": 3.0, "duration_s": 6.0}
    found = measure_activity(Trace.from_rows([launch(0, 1, 1), operator, kernel(3, 6, correlation=1)]))
    assert (found.host_s, found.busy_s, found.span_s) == (1.0, 6.0, 9.0)


def test_nothing_is_no_activity() -> None:
    found = measure_activity(Trace.from_rows([]))
    assert (found.span_s, found.busy_s, found.idle_s, found.kernels) == (0.0, 0.0, 0.0, 0)


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 9), st.sampled_from(["gemm", "ncclKernel", "Memcpy DtoD"])),
        max_size=25,
    )
)
def test_parts_of_a_span_fit_together(work: list[tuple[float, float, str]]) -> None:
    found = measure_activity(
        Trace.from_rows([kernel(s, d, n) | {"kind": "copy" if "cpy" in n else "kernel"} for s, d, n in work])
    )
    assert found.busy_s + found.idle_s == pytest.approx(found.span_s)
    assert found.launch_idle_s + found.other_idle_s == pytest.approx(found.idle_s)
    assert found.exposed_communication_s + found.overlapped_communication_s == pytest.approx(found.communication_s)
    assert found.busy_s <= found.compute_s + found.communication_s + found.copy_s + 1e-9
    assert max(found.compute_s, found.communication_s, found.copy_s) <= found.busy_s + 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=4),
)
def test_busy_time_of_windows_is_that_of_their_moments(
    work: list[tuple[int, int]], spans: list[tuple[int, int]]
) -> None:
    trace = Trace.from_rows([kernel(s, d) for s, d in [*work, (100, 1)]])
    windows = [{0: (float(b), float(b + length))} for b, length in spans]
    busy = [sum(any(s <= t < s + d for s, d in work) for t in range(b, b + length)) for b, length in spans]
    assert measure_activity(trace, windows).busy_s == pytest.approx(sum(busy) / len(spans))
