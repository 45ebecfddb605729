"""Diff, repeats and rendering: small cases worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError
from foretrace.traces import Trace, average_repeats, diff_traces, load_trace, save_trace, split_steps
from foretrace.traces.compare.diff import step_seconds
from foretrace.traces.compare.render import diff_page, human_time, short_path

KEYS = ["predicted_s", "measured_s", "error", "matched_share", "mape_ops", "by_module", "by_kind",
        "unmatched_predicted", "unmatched_measured", "waterfall", "causes", "by_shape", "activity",
        "memory"]  # fmt: skip
ACTIVITY = ["span_s", "busy_s", "compute_s", "communication_s", "copy_s", "exposed_communication_s",
            "overlapped_communication_s", "idle_s", "launch_idle_s", "other_idle_s", "host_s", "kernels"]  # fmt: skip


def prediction() -> Trace:
    rows = [("aten.mm.default", "matmul", "net.a", 3.0), ("aten.mm.default", "matmul", "net.b", 1.0),
            ("aten.relu.default", "elementwise", "net.b", 1.0), ("sort.stable", "sort", "net", 0.5)]  # fmt: skip
    return Trace.from_rows(
        [
            {"name": n, "kind": k, "module": m, "start_s": i, "duration_s": d, "op_id": i, "stream": "compute"}
            for i, (n, k, m, d) in enumerate(rows)
        ],
        step_s=6.0,
    )


def measurement(scale: float = 1.0, shift: float = 0.0) -> Trace:
    rows = [("aten::mm", "net.a", 0.0, 2.0), ("aten::mm", "net.b", 2.0, 2.0), ("aten::relu", "net.b", 4.0, 1.0),
            ("dropout", "net", 5.0, 3.0)]  # fmt: skip
    return Trace.from_rows(
        [
            {"name": n, "kind": "cpu_op", "module": m, "start_s": shift + s, "duration_s": d * scale, "stream": "host"}
            for n, m, s, d in rows
        ],
        source="measured",
    )


def test_a_diff_worked_out_by_hand() -> None:
    diff = diff_traces(prediction(), measurement())
    found = diff.to_json()
    assert {key: found[key] for key in KEYS[:9]} == {
        "predicted_s": 6.0,
        "measured_s": 8.0,
        "error": -0.25,
        "matched_share": 0.625,
        "mape_ops": pytest.approx((1 + 1 + 0) / 5),  # instances: +50 % and -50 % do not cancel
        "by_module": [
            {"module": "net", "predicted_s": 0.5, "measured_s": 3.0, "error": pytest.approx(-5 / 6), "ops": 2},
            {"module": "net.a", "predicted_s": 3.0, "measured_s": 2.0, "error": 0.5, "ops": 1},
            {"module": "net.b", "predicted_s": 2.0, "measured_s": 3.0, "error": pytest.approx(-1 / 3), "ops": 2},
        ],
        "by_kind": [
            {"kind": "matmul", "predicted_s": 4.0, "measured_s": 4.0, "error": 0.0, "ops": 2},
            {"kind": "other", "predicted_s": 0.0, "measured_s": 3.0, "error": -1.0, "ops": 1},
            {"kind": "elementwise", "predicted_s": 1.0, "measured_s": 1.0, "error": 0.0, "ops": 1},
            {"kind": "sort", "predicted_s": 0.5, "measured_s": 0.0, "error": None, "ops": 1},
        ],
        "unmatched_predicted": [{"name": "sort.stable", "module": "net", "kind": "sort", "seconds": 0.5, "count": 1}],
        "unmatched_measured": [{"name": "dropout", "module": "net", "kind": "other", "seconds": 3.0, "count": 1}],
    }
    assert [(op.name, op.module, op.error) for op in diff.by_op] == [
        ("aten.mm.default", "net.a", 0.5),
        ("aten.mm.default", "net.b", -0.5),
        ("aten.relu.default", "net.b", 0.0),
    ]


def test_what_the_faces_draw_worked_out_by_hand() -> None:
    found = diff_traces(prediction(), measurement()).to_json()
    assert found["waterfall"] == [
        {"label": "predicted step", "seconds": 6.0},
        {"label": "kernels: matmul", "seconds": 0.0},
        {"label": "kernels: elementwise", "seconds": 0.0},
        {"label": "only predicted", "seconds": -0.5},
        {"label": "only measured", "seconds": 3.0},
        {"label": "launch gaps", "seconds": 0.0},
        {"label": "exposed communication", "seconds": 0.0},
        {"label": "idle", "seconds": 0.0},
        {"label": "other", "seconds": -0.5},  # half a second of the predicted step is in no operator
        {"label": "measured step", "seconds": 8.0},
    ]
    assert [(c["what"], c["name"], c["module"], c["difference_s"], c["ops"]) for c in found["causes"]] == [
        ("extra", "dropout", "net", 3.0, 1),
        ("faster", "aten.mm.default", "net.a", -1.0, 1),
        ("slower", "aten.mm.default", "net.b", 1.0, 1),
        ("missing", "sort.stable", "net", -0.5, 1),
    ]
    assert [(r["shape"], r["predicted_s"], r["measured_s"]) for r in found["by_shape"]] == [
        ("mm", 4.0, 4.0), ("dropout", 0.0, 3.0), ("relu", 1.0, 1.0), ("sort.stable", 0.5, 0.0),
    ]  # fmt: skip
    assert list(found["activity"]["predicted"]) == list(found["activity"]["measured"]) == ACTIVITY
    assert found["memory"] == {"predicted_peak_bytes": None, "measured_peak_bytes": None}


def test_an_operator_knows_where_to_be_drawn() -> None:
    a = prediction().replace(flops=[8.0, 4.0, 2.0, 1.0], bytes_moved=[80.0, 40.0, 20.0, 10.0], phase="forward")
    b = measurement().replace(spread_s=[0.3, 0.1, 0.0, 0.0])
    op = diff_traces(a, b).by_op[0]
    assert (op.predicted_start_s, op.measured_start_s, op.phase) == (0.0, 0.0, "forward")
    assert (op.flops, op.bytes_moved, op.predicted_ops, op.measured_ops) == (8.0, 80.0, 1, 1)
    assert op.measured_spread_s == pytest.approx(0.3)


def test_memory_lines_of_both_sides_are_compared() -> None:
    line = {"time_s": [0.0, 1.0, 2.0], "allocated_bytes": [4.0, 9.0, 2.0]}
    diff = diff_traces(prediction().replace(info={"memory": line}), measurement())
    assert diff.memory[0] is not None
    assert diff.memory[0].peak == 9.0
    assert diff.to_json()["memory"] == {"predicted_peak_bytes": 9.0, "measured_peak_bytes": None}


def test_json_keys_are_the_contract_and_plain_json() -> None:
    found = diff_traces(prediction(), measurement()).to_json()
    assert list(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_modules_roll_up_to_any_depth_without_losing_time() -> None:
    diff = diff_traces(prediction(), measurement())
    assert [(r.label, r.predicted_s, r.measured_s, r.count) for r in diff.modules(1)] == [("net", 5.5, 8.0, 5)]
    assert [r.label for r in diff.modules(0)] == [""]
    assert sum(r.measured_s for r in diff.modules(None)) == sum(r.measured_s for r in diff.by_kind) == 8.0


def test_a_trace_against_itself_has_no_error() -> None:
    for trace in (prediction(), measurement()):
        diff = diff_traces(trace, trace)
        assert (diff.error, diff.matched_share, diff.mape_ops) == (0.0, 1.0, 0.0)
        assert diff.unmatched_predicted == diff.unmatched_measured == []


def test_nothing_measured_gives_null_not_a_crash() -> None:
    diff = diff_traces(prediction(), Trace.from_rows([]))
    found = diff.to_json()
    assert (found["error"], found["mape_ops"], found["matched_share"]) == (None, None, 0.0)


def test_a_prediction_diffs_the_same_from_every_format(tmp_path: Path) -> None:
    expected = diff_traces(prediction(), measurement()).to_json()
    for ending in (".pftrace", ".json.gz", ".trace"):
        save_trace(prediction(), tmp_path / f"p{ending}")
        assert diff_traces(load_trace(tmp_path / f"p{ending}"), measurement()).to_json() == expected


def test_repeats_average_per_instance_with_their_spread() -> None:
    mean = average_repeats([measurement(1.0), measurement(2.0, shift=100.0), measurement(3.0)])
    assert mean.duration_s.tolist() == [4.0, 4.0, 2.0, 6.0]
    assert mean.spread_s.tolist() == [2.0, 2.0, 1.0, 3.0]
    assert mean.start_s.tolist() == [0.0, 2.0, 4.0, 5.0]
    assert mean.info["repeats"] == 3
    assert average_repeats([measurement()]) == measurement()


def test_repeats_that_differ_only_in_launches_keep_those_that_they_share() -> None:
    def run(shared: float, *others: str) -> Trace:
        launches = [{"name": n, "kind": "launch", "start_s": 9 + i, "duration_s": shared, "stream": "host"}
                    for i, n in enumerate(["cudaLaunchKernel", *others])]  # fmt: skip
        return Trace.from_rows([*_rows(measurement()), *launches])

    mean = average_repeats([run(1.0), run(3.0, "cudaEventQuery"), run(2.0)])
    assert mean.name.tolist() == [*measurement().name.tolist(), "cudaLaunchKernel"]
    assert mean.duration_s.tolist()[-1] == 2.0
    assert mean.info["repeats"] == 3


def test_repeats_of_other_operators_are_refused() -> None:
    with pytest.raises(ForetraceError, match="run 1 has 4 events, run 2 has 3"):
        average_repeats([measurement(), measurement().select(np.arange(3))])
    with pytest.raises(ForetraceError, match="run 2 has other names than run 1"):
        average_repeats([measurement(), measurement().replace(name="aten::x")])
    with pytest.raises(ForetraceError, match="at least one"):
        average_repeats([])


def marked(*scales: float) -> Trace:
    """One ``ProfilerStep`` per scale, 20 s apart, each with the measured operators and one late kernel."""
    rows = []
    for number, scale in enumerate(scales):
        base = 20.0 * number
        rows.append({"name": f"ProfilerStep#{number}", "kind": "annotation", "start_s": base, "duration_s": 10.0})
        rows += [
            {"name": n, "kind": "cpu_op", "module": m, "start_s": base + t, "duration_s": 0.5,
             "external_id": 9 * number + i}
            for i, (n, m, t) in enumerate([("aten::mm", "net.a", 1.0), ("aten::relu", "net.b", 2.0)])
        ]  # fmt: skip
        rows.append({"name": "k", "kind": "kernel", "start_s": base + 21.0, "duration_s": scale, "stream": "gpu",
                     "external_id": 9 * number})  # fmt: skip
    return Trace.from_rows(rows).with_parents()


def test_marked_steps_are_split_and_averaged_before_a_diff() -> None:
    parts = split_steps(marked(1.0, 3.0))
    assert [len(part) for part in parts] == [3, 3]
    assert [part.step_s for part in parts] == [10.0, 10.0]
    diff = diff_traces(prediction(), marked(1.0, 3.0))
    assert diff.by_op[0].measured_s == 2.0
    assert diff.measured_s == 10.0
    assert diff.matched_share == 1.0


def test_marked_steps_that_differ_a_little_are_averaged_over_what_they_share() -> None:
    trace = marked(1.0, 2.0, 3.0, 4.0, 50.0)
    extra = {"name": "cudaEventQuery", "kind": "launch", "start_s": 23.0, "duration_s": 0.1, "stream": "host"}
    more = Trace.from_rows([*_rows(trace), extra]).with_parents()
    step = diff_traces(prediction(), more).measured
    assert step.info["repeats"] == 5
    assert step.duration_s[step.kind.isin(["kernel"])].tolist() == [12.0]
    assert step.spread_s[step.kind.isin(["kernel"])].tolist() == [pytest.approx(np.std([1, 2, 3, 4, 50], ddof=1))]


def test_a_step_that_lacks_too_much_is_left_out_with_a_warning() -> None:
    trace = marked(1.0, 2.0, 3.0)
    uneven = trace.select(~(trace.name.isin(["k"]) & (trace.duration_s == 1.0)))
    diff = diff_traces(prediction(), uneven)
    assert diff.measured.info["warnings"] == ["1 of 3 steps differ from the others and are left out"]
    assert diff.measured.info["repeats"] == 2
    assert diff.by_op[0].measured_s == 2.5


def test_a_step_of_ranks_whose_clocks_disagree_is_that_of_the_longest() -> None:
    ranks = [{"name": "k", "kind": "kernel", "start_s": 1000.0 * r + 5, "duration_s": d, "rank": r, "stream": "gpu"}
             for r, d in enumerate([2.0, 3.0])]  # fmt: skip
    assert step_seconds(Trace.from_rows(ranks)) == 3.0
    assert step_seconds(Trace.from_rows([])) == 0.0


@pytest.mark.parametrize("category", ["overhead", "some_category_of_tomorrow"])
def test_what_is_not_known_to_be_work_in_a_profile_is_none(category: str) -> None:
    buffer = {"name": "Activity Buffer Request", "kind": category, "start_s": 20.0, "duration_s": 90.0, "stream": "4"}
    kernel = {"name": "sgemm", "kind": "kernel", "start_s": 5.0, "duration_s": 1.0, "stream": "gpu"}
    noisy, quiet = Trace.from_rows([kernel, buffer]), Trace.from_rows([kernel])
    diff = diff_traces(quiet, noisy)
    assert (diff.predicted_s, diff.measured_s, diff.unmatched_measured) == (1.0, 1.0, [])
    assert diff.activity[1] == diff.activity[0]
    named = Trace.from_rows([{"name": "layer", "kind": "of_a_stranger", "start_s": 0.0, "duration_s": 1.0}])
    assert step_seconds(named) == 1.0  # without a profiler's kinds any may be work


def test_kinds_of_two_measured_traces_are_told_by_names() -> None:
    def profile(scale: float, *more: str) -> Trace:
        names = [("ampere_sgemm_128x64", "kernel"), ("Memset (Device)", "memset"), ("vectorized_elementwise", "kernel")]
        names += [(n, "kernel") for n in more]
        return Trace.from_rows(
            [
                {"name": n, "kind": k, "start_s": float(i), "duration_s": scale / (i + 2), "stream": "gpu"}
                for i, (n, k) in enumerate(names)
            ]
        )

    diff = diff_traces(profile(1.0), profile(2.0, "flash_fwd", "mystery"))
    assert [r.label for r in diff.by_kind] == ["matmul", "copy", "elementwise", "attention", "other"]
    assert [r.predicted_s for r in diff.by_kind][-2:] == [0.0, 0.0]
    assert {op.kind for op in diff.by_op} == {"matmul", "copy", "elementwise"}
    assert [(u.name, u.kind) for u in diff.unmatched_measured] == [("flash_fwd", "attention"), ("mystery", "other")]
    assert {(c.name, c.kind) for c in diff.causes if c.what == "extra"} == {
        ("flash_fwd", "attention"), ("mystery", "other"),
    }  # fmt: skip


def _rows(trace: Trace) -> list[dict[str, object]]:
    columns = {c: v.tolist() for c, v in trace.columns().items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_the_page_shows_totals_errors_and_what_has_no_partner() -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(diff_page(diff_traces(prediction(), measurement()), depth=2, top=2))
    console.file.close()
    text = console.export_text()
    for part in ("predicted 6 s, measured 8 s, error -25.0%", "62.5% of measured operator time matched", "net.a",
                 "+50.0%", "1 more", "on one side only", "sort.stable",
                 "dropout", "waterfall", "only measured", "fix this first", "extra dropout", "activity"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (1.5, "1.5 s"), (2.5e-3, "2.5 ms"), (4.2e-5, "42 us"), (3e-9, "3 ns")]
)
def test_times_read_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_long_paths_keep_their_end() -> None:
    assert short_path("model.layers.0.mlp", 10) == "…ers.0.mlp"
    assert short_path("short", 10) == "short"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=20))
@settings(deadline=None)
def test_every_second_of_both_sides_is_counted_once(ops: list[tuple[str, float, float]]) -> None:
    columns = {"name": [f"aten::{n}" for n, *_ in ops], "module": [f"m.{i}" for i in range(len(ops))]}
    start = np.arange(len(ops)) * 100.0
    a = Trace.from_columns(columns | {"start_s": start, "duration_s": [p for _, p, _ in ops], "kind": "matmul"})
    b = Trace.from_columns(columns | {"start_s": start, "duration_s": [m for *_, m in ops], "kind": "cpu_op"})
    diff = diff_traces(a, b.select(np.arange(len(ops) // 2, len(ops))))
    for table in (diff.by_module, diff.by_kind, diff.modules(1)):
        assert sum(r.predicted_s for r in table) == pytest.approx(a.total_s)
        assert sum(r.measured_s for r in table) == pytest.approx(b.duration_s[len(ops) // 2 :].sum())
