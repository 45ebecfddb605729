"""Whole replays: golden breakdowns, the JSON contract, properties, the trace, what the terminal shows.

After a change that is meant to move the goldens: ``FORETRACE_REGENERATE=1 pytest tests/replay/test_replay.py``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from strategies import graphs

from foretrace.ir import ForetraceError, Graph, Role, save_graph
from foretrace.replay import EXECUTIONS, replay_graph
from foretrace.replay.attribution import BREAKDOWN, PHASES
from foretrace.replay.footprint import CATEGORIES
from foretrace.replay.render import render_result
from tests.replay.models import BATCH, Builder, mlp, replay_roofline, system, transformer

GOLDEN = Path(__file__).parent / "golden"
MODES = sorted(EXECUTIONS)
KEYS = (
    "foretrace model system plan execution time_s time_low_s time_high_s phases_s breakdown_s flops mfu memory ops "
    "unmodelled_ops warnings"
).split()


@pytest.mark.parametrize("mode", MODES)
def test_golden(mode: str) -> None:
    found = replay_roofline(transformer(), system(), execution=mode)
    shown = found.to_json()
    del shown["foretrace"]
    shown["by_module"] = [s._asdict() for s in found.by_module(4, fold=True)]
    shown["top_ops"] = [s._asdict() for s in found.top_ops()]
    path = GOLDEN / f"transformer-{mode}.json"
    if os.environ.get("FORETRACE_REGENERATE"):
        path.write_text(json.dumps(shown, indent=1) + "\n")
    assert _rounded(shown) == _rounded(json.loads(path.read_text()))


def _rounded(value: Any) -> Any:
    """Floats to 12 digits: a sum may differ in its last bits from one machine to another."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def test_the_json_contract() -> None:
    result = replay_roofline(mlp(), system(), batch=3)
    shown = result.to_json()
    assert [k for k in KEYS if k not in shown] == []
    assert list(shown["phases_s"]) == list(PHASES)
    assert list(shown["breakdown_s"]) == list(BREAKDOWN)
    assert list(shown["memory"])[:4] == ["peak_bytes", "capacity_bytes", "fits", "by_category_bytes"]
    assert list(shown["memory"]["by_category_bytes"]) == list(CATEGORIES)
    assert shown["symbols"] == {"batch": 3, "seq": 8}
    assert shown["ops"] == 5
    assert shown["flops"] == 2 * 2 * 3 * 256 * 1024
    assert shown["mfu"] == pytest.approx(shown["flops"] / (1e13 * shown["time_s"]))
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_identical_runs_give_identical_bytes() -> None:
    first, second = (json.dumps(replay_roofline(transformer(), system()).to_json()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", ["bandwidth", "matrix", "vector", "dispatch_s", "launch_s", "floor_s"])
def test_better_hardware_is_never_slower(mode: str, change: str) -> None:
    graph = transformer(width=256)
    better: dict[str, Any] = {
        "bandwidth": 3e11,
        "matrix": {"bfloat16": 3e13},
        "vector": 3e12,
        "dispatch_s": 1e-6,
        "launch_s": 1e-6,
        "floor_s": 1e-7,
    }
    before = replay_roofline(graph, system(), execution=mode, batch=64)
    after = replay_roofline(graph, system(**{change: better[change]}), execution=mode, batch=64)
    assert after.time_s <= before.time_s
    assert after.time_low_s <= before.time_low_s


def test_twice_the_batch_is_twice_the_flops() -> None:
    one, two = (replay_roofline(transformer(), system(), batch=b) for b in (4, 8))
    assert two.flops == 2 * one.flops
    assert two.time_s >= one.time_s


@given(graphs(), st.sampled_from(MODES), st.sampled_from(["gpu", "cpu"]))
@settings(max_examples=200)
def test_any_graph_adds_up(graph: Graph, mode: str, kind: str) -> None:
    try:
        result = replay_roofline(graph, system(kind), execution=mode)
    except ForetraceError:
        return  # sizes that no memory holds; device graphs on a CPU
    assert sum(result.breakdown_s.values()) == result.time_s
    assert sum(result.phases_s.values()) == pytest.approx(result.time_s)
    assert result.time_low_s <= result.time_s * (1 + 1e-12) <= result.time_high_s * (1 + 2e-12)
    schedule, timeline = result.timeline.schedule, result.timeline
    per_stream = np.bincount(result.program.stream, schedule.duration, minlength=1)
    assert timeline.makespan >= max(schedule.duration.max(initial=0), per_stream.max() * (1 - 1e-12))
    assert (timeline.end[schedule.sources] <= timeline.start[schedule.successors]).all()
    ran = {op: node for node, op in enumerate(result.program.op.tolist()) if result.program.on_device[node]}
    for op, before in enumerate(result.table.graph.predecessors):
        for p in before:
            assert op not in ran or p not in ran or timeline.end[ran[p]] <= timeline.start[ran[op]]
    assert result.memory.peak_bytes >= sum(a.bytes for a in result.footprint.largest)
    assert len(result.trace) == len(result.program.op) or kind == "cpu"
    json.dumps(result.to_json(), allow_nan=False)


def test_an_empty_graph_takes_no_time() -> None:
    result = replay_roofline(Builder().graph(), system())
    assert (result.time_s, result.mfu, result.kernels, len(result.trace)) == (0.0, 0.0, 0, 0)
    assert result.by_module() == result.top_ops() == []


def test_phases_follow_each_other() -> None:
    b = Builder()
    x = b.tensor("x", BATCH, 1000, role=Role.INPUT)
    for phase in PHASES:
        x = b.pointwise("neg", x, phase=phase)
    result = replay_roofline(b.graph(), system())
    assert dict(result.phases_s) == pytest.approx({"forward": 5e-6, "backward": 4e-6, "optimizer": 4e-6})


def test_memory_that_does_not_fit_is_a_warning() -> None:
    result = replay_roofline(mlp(), system(capacity=1e6))
    assert not result.memory.fits
    assert "does not fit: the step needs 1.009 MiB and round has 976.6 KiB" in result.warnings


def test_without_a_plan_the_rest_of_the_node_idles() -> None:
    assert "no plan: 1 of the 8 accelerators is replayed, the other 7 idle" in (
        replay_roofline(mlp(), system(count=8)).warnings
    )


def test_a_system_may_be_a_name() -> None:
    assert replay_graph(mlp(), "h100-sxm").system == "h100-sxm"


def test_the_trace_has_every_kernel_and_what_issued_it() -> None:
    result = replay_roofline(mlp(), system())
    trace = result.trace
    kernels = trace.select(trace.stream.isin(["compute"]))
    assert kernels.name.tolist() == ["aten.mm.default", "aten.gelu.default", "aten.mul.default", "aten.mm.default"]
    assert kernels.kind.tolist() == ["matmul", "elementwise", "elementwise", "matmul"]
    assert kernels.module.tolist() == ["mlp.up", "mlp.act", "mlp.act", "mlp.down"]
    assert kernels.op_id.tolist() == [0, 1, 3, 4]
    assert kernels.shapes[0] == "[2,256][256,1024]"
    assert kernels.flops[0] == 2 * 2 * 256 * 1024
    assert kernels.bytes_moved[0] == 529408
    assert trace.select(trace.kind.isin(["launch"])).op_id.tolist() == [0, 1, 2, 3, 4]
    assert trace.span_s == pytest.approx(trace.step_s) == pytest.approx(result.time_s)
    assert (trace.source, trace.model, trace.system) == ("predicted", "mlp", "round")


def test_on_a_cpu_dispatch_is_part_of_the_operator() -> None:
    trace = replay_roofline(mlp(), system("cpu")).trace
    assert trace.stream.tolist() == ["compute"] * 5
    assert "view" in trace.kind.tolist()
    assert trace.duration_s.tolist() == pytest.approx([9.29408e-6, 5e-6, 3e-6, 5e-6, 9.29408e-6])
    assert trace.start_s[1:].tolist() == pytest.approx(trace.end_s[:-1].tolist())


def test_rankings_add_up() -> None:
    result = replay_roofline(transformer(layers=3), system())
    everything = result.by_module(0)
    assert [s.name for s in everything] == [""]
    assert everything[0].share == 1.0
    assert everything[0].seconds == pytest.approx(result.breakdown_s["compute"])
    folded = {s.name: s.kernels for s in result.by_module(3, fold=True)}
    assert folded == {"model.layers.*": 42, "model.norm": 1, "lm_head": 1}
    assert sum(s.kernels for s in result.top_ops(100)) == result.kernels


def test_the_terminal_shows_what_matters() -> None:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(render_result(replay_roofline(transformer(), system(count=8, capacity=1e5))))
    text = console.export_text()
    for part in ("transformer prefill on round", "163 us", "does not fit", "model.layers.*.mlp", "mm ", "idle"):
        assert part in text


def test_replaying_a_saved_graph_imports_nothing_heavy(tmp_path: Path) -> None:
    save_graph(mlp(), tmp_path / "mlp.graph")
    code = (
        "import sys; from foretrace.ir import load_graph; from foretrace.replay import replay_graph;"
        "replay_graph(load_graph(sys.argv[1]), 'h100-sxm').to_json();"
        "print(sorted({'torch', 'numba', 'pyarrow', 'networkx', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "mlp.graph"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
