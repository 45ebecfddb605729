"""Plans replayed: the plain replay as a plan of one, textbook pipelines, properties, errors, what ranks answer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, UnknownNameError, save_graph
from foretrace.replay.footprint import CATEGORIES
from foretrace.replay.parallel import MemoryPolicy, Overlap, Shared
from foretrace.transforms.plan import PlanError
from tests.replay.models import replay_roofline, system, transformer
from tests.replay.parallel.models import KERNEL_S, Even, replay, training

GRAPH = training(layers=8)
LAYERS = training(layers=8, ends=False)
FORWARD_S, BACKWARD_S = 2 * KERNEL_S, 3 * KERNEL_S  # of a layer


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
@pytest.mark.parametrize("dispatch_s", [1e-7, 4e-6, 1e-4])
def test_one_accelerator_is_the_plain_replay(mode: str, kind: str, dispatch_s: float) -> None:
    on = system(kind, dispatch_s=dispatch_s)
    plain = replay_roofline(GRAPH, on, batch=64, execution=mode)
    planned = replay_roofline(GRAPH, on, batch=64, execution=mode, plan="microbatch=64")
    off = 3e-12 if mode == "eager" else 3e-6  # the optimizer is no module that a guard stands for
    for name in ("time_s", "time_low_s", "time_high_s"):
        assert getattr(planned, name) == pytest.approx(getattr(plain, name), abs=off)
    assert planned.flops == plain.flops
    assert planned.mfu == pytest.approx(plain.mfu, rel=off / plain.time_s)
    assert dict(planned.phases_s) == pytest.approx(dict(plain.phases_s), abs=off)
    assert dict(planned.breakdown_s) == pytest.approx(dict(plain.breakdown_s), abs=off)
    assert planned.memory.peak_bytes == pytest.approx(plain.memory.peak_bytes, abs=512 * len(GRAPH.tensors))
    assert planned.kernels == plain.kernels


def test_micro_batches_follow_one_another_and_the_host_runs_ahead() -> None:
    one = replay(LAYERS, "microbatch=1", 1)
    four = replay(LAYERS, "microbatch=1", 4)
    assert four.time_s == pytest.approx(4 * one.time_s, abs=1e-9)
    assert four.kernels == 4 * (one.kernels - 1) + 1 + 3 * 8  # one optimizer; gradients are summed from the second on


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_a_pipeline_of_equal_stages_is_the_textbook_one(schedule: str, pp: int, m: int) -> None:
    """(m + pp - 1) / m of the work of a rank (Huang et al. 2019)."""
    graph = training(layers=8, ends=False, optimizer=False)
    found = replay(graph, f"pp={pp},schedule={schedule}", m)
    work = 8 // pp * (FORWARD_S + BACKWARD_S)
    assert found.time_s == pytest.approx((m + pp - 1) * work, abs=1e-9)
    assert found.breakdown_s["bubble"] == pytest.approx((pp - 1) * work, abs=1e-9)


def test_more_chunks_a_rank_make_the_bubble_smaller() -> None:
    graph = training(layers=16, ends=False, optimizer=False)
    plain, chunked = (replay(graph, f"pp=4,interleave={v}", 8) for v in (1, 2))
    assert chunked.breakdown_s["bubble"] == pytest.approx(plain.breakdown_s["bubble"] / 2)
    assert chunked.breakdown_s["compute"] == pytest.approx(plain.breakdown_s["compute"])


def test_halving_the_backward_makes_the_bubble_smaller() -> None:
    whole, halves = (replay(LAYERS, f"pp=4,schedule={name}", 8) for name in ("1f1b", "zb-h1"))
    assert halves.time_s < whole.time_s
    assert halves.breakdown_s["compute"] == pytest.approx(whole.breakdown_s["compute"])


PLANS = st.builds(
    lambda pp, dp, zero, shard, schedule, interleave: (
        f"pp={pp},dp={dp}"
        + (f",zero={zero}" if dp > 1 else "")
        + (f",shard={shard}" if dp > 1 and zero and dp % shard == 0 else "")
        + (
            f",schedule={schedule}"
            if pp > 1 and (zero < 2 or schedule in ("gpipe", "1f1b")) and interleave == 1
            else ""
        )
        + (f",interleave={interleave}" if pp > 1 and interleave > 1 else "")
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4, 64]),
    st.integers(0, 3),
    st.sampled_from([1, 2]),
    st.sampled_from(["gpipe", "1f1b", "zb-h1", "dualpipe"]),
    st.sampled_from([1, 2]),
)


@given(PLANS, st.integers(1, 3), st.sampled_from(["eager", "compiled", "cudagraph"]), st.floats(0, 1e-2))
@settings(max_examples=60, deadline=None)
def test_any_plan_adds_up(plan: str, groups: int, mode: str, communication_s: float) -> None:
    from foretrace.transforms.plan import Plan

    parsed = Plan.parse(plan)
    batch = parsed.dp * parsed.pp * groups * 2
    found = replay(GRAPH, plan, batch, execution=mode, costs=Even(communication_s=communication_s))
    assert sum(found.breakdown_s.values()) == found.time_s
    assert sum(found.phases_s.values()) == pytest.approx(found.time_s)
    assert found.time_s == pytest.approx(found.timeline.makespan / 1e12)
    assert found.time_low_s <= found.time_s * (1 + 1e-9) <= found.time_high_s * (1 + 2e-9)
    assert found.parallel is not None
    assert sum(rank.count for rank in found.parallel.ranks) == parsed.ranks
    assert sum(found.to_json()["critical_path"].values()) == pytest.approx(found.time_s)
    for rank in found.parallel.ranks:
        assert sum(rank.breakdown_s.values()) == pytest.approx(found.time_s)
        assert all(s >= 0 for s in rank.breakdown_s.values())
        assert list(rank.memory.by_category_bytes) == list(CATEGORIES)
        assert sum(rank.memory.by_category_bytes.values()) == rank.memory.peak_bytes
        assert rank.busy_s <= found.time_s * (1 + 1e-12)
    assert found.memory.peak_bytes == max(rank.memory.peak_bytes for rank in found.parallel.ranks)
    assert found.flops == GRAPH.flops({"batch": 1, "seq": 8}) * batch
    json.dumps(found.to_json(), allow_nan=False)


def test_identical_runs_give_identical_bytes() -> None:
    first, second = (json.dumps(replay(GRAPH, "pp=2,dp=2,zero=3", 8).to_json()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_plans_that_share_their_work_get_the_same_answers(mode: str) -> None:
    shared = Shared()
    for plan in ("pp=2,dp=4", "pp=4,dp=2,zero=1", "dp=8,zero=3", "pp=2,dp=4,schedule=zb-h1", "pp=2,dp=4"):
        alone = replay(GRAPH, plan, 16, execution=mode)
        assert replay(GRAPH, plan, 16, execution=mode, shared=shared).to_json() == alone.to_json()
        quick = replay(GRAPH, plan, 16, execution=mode, shared=shared, interval=False)
        assert (quick.time_s, quick.time_low_s, quick.memory.peak_bytes) == (
            alone.time_s,
            pytest.approx(alone.time_s),
            alone.memory.peak_bytes,
        )


@pytest.mark.parametrize("plan", ["pp=2,dp=4", "dp=4,zero=3", "pp=4,dp=2,zero=1,schedule=zb-h1"])
@given(st.integers(0, 7), st.floats(0.2, 1.0))
@settings(max_examples=15, deadline=None)
def test_a_straggler_never_speeds_up(plan: str, rank: int, speed: float) -> None:
    rank %= 8 if plan != "dp=4,zero=3" else 4
    costs = Even(communication_s=1e-4)
    even = replay(GRAPH, plan, 16, costs=costs)
    slow = replay(GRAPH, plan, 16, costs=costs, speeds={rank: speed})
    assert slow.time_s >= even.time_s
    assert slow.rank(rank).breakdown_s["compute"] >= even.rank(rank).breakdown_s["compute"] * (1 - 1e-9)


def test_replicas_wait_for_the_slowest() -> None:
    found = replay(GRAPH, "dp=4", 16, speeds={2: 0.5})
    waiting, slow = found.rank(0), found.rank(2)
    assert (waiting.count, slow.count) == (3, 1)
    assert slow.breakdown_s["compute"] > 1.6 * waiting.breakdown_s["compute"]
    assert waiting.breakdown_s["idle"] > 0.3 * found.time_s
    assert slow.breakdown_s["idle"] == pytest.approx(0, abs=1e-9)


def test_slow_links_slow_what_goes_over_them() -> None:
    costs = Even(communication_s=KERNEL_S)
    even = replay(GRAPH, "pp=2,dp=2", 8, costs=costs)
    sends = replay(GRAPH, "pp=2,dp=2", 8, costs=costs, links={0: 0.25})
    assert sends.time_s > even.time_s
    assert sends.rank(0).breakdown_s["compute"] == pytest.approx(even.rank(0).breakdown_s["compute"], rel=0.05)
    assert replay(GRAPH, "pp=2", 4, costs=costs, links={0: 1.0}).time_s == replay(GRAPH, "pp=2", 4, costs=costs).time_s


def test_the_cost_does_not_grow_with_replicas() -> None:
    small, large = (replay(GRAPH, f"pp=2,dp={dp}", 4 * dp) for dp in (2, 4096))
    assert small.timeline.schedule.nodes == large.timeline.schedule.nodes
    assert large.time_s == pytest.approx(small.time_s)
    assert large.flops == 2048 * small.flops


def test_gradients_are_reduced_beside_the_backward() -> None:
    """Of eight buckets of one layer each the last alone is exposed."""
    costs = Even(communication_s=KERNEL_S)
    graph = training(layers=8, ends=False, optimizer=False)
    alone = replay(graph, "microbatch=1", 1, costs=costs)
    both = replay(graph, "dp=2", 2, costs=costs, overlap=Overlap(slowdown=0.0, bucket=64 * 64))
    assert both.time_s == pytest.approx(alone.time_s + KERNEL_S, abs=1e-9)
    slowed = replay(graph, "dp=2", 2, costs=costs, overlap=Overlap(slowdown=0.5, bucket=64 * 64))
    assert slowed.time_s == pytest.approx(both.time_s + 7 * 0.5 * KERNEL_S, abs=1e-9)


def test_memory_under_zero() -> None:
    graph = training(layers=8, width=256, ends=False)
    parameters = 8 * 256 * 256 * 2
    peak = {}
    for zero in range(4):
        found = replay(graph, f"dp=4,zero={zero}" if zero else "dp=4", 8)
        peak[zero] = found.memory.by_category_bytes
    assert peak[0]["parameters"] == peak[0]["optimizer"] == parameters
    assert peak[1]["optimizer"] == peak[2]["optimizer"] == parameters // 4
    assert peak[2]["parameters"] == parameters
    assert peak[3]["parameters"] == parameters // 4
    assert peak[1]["communication"] == 0
    assert peak[2]["communication"] == parameters // 8  # gradients of one unit, on their way
    assert peak[3]["communication"] == 3 * parameters // 8  # and two units gathered
    policy = MemoryPolicy(gradient="float32", state_bytes=12, fragmentation=0.1)
    found = replay(graph, "dp=4", 8, policy=policy).memory.by_category_bytes
    assert found["optimizer"] == 6 * parameters
    assert found["gradients"] >= 2 * parameters - 1
    assert found["workspace"] == round(0.1 * found["activations"]) or found["workspace"] > 0


def test_hybrid_shards_reduce_among_shards_then_replicas() -> None:
    found = replay(training(layers=2, width=64, ends=False), "dp=8,zero=3,shard=4", 8)
    assert found.parallel is not None
    run = found.parallel.run
    ops = [run.priced.graph.ops[op] for op in np.unique(run.step.op[run.step.op >= 0]).tolist()]
    whole = 64 * 64 * 2
    expected = {
        ("all_gather_into_tensor", whole, 4, 1),
        ("reduce_scatter_tensor", whole, 4, 1),
        ("all_reduce", whole // 4, 2, 4),
    }
    assert {(op.name.split(".")[1], *op.attributes.values()) for op in ops} == expected


def test_without_an_optimizer_nothing_is_updated() -> None:
    found = replay(training(optimizer=False), "dp=2,zero=1", 4, costs=Even(communication_s=1e-3))
    assert found.phases_s["optimizer"] == 0.0
    assert found.to_json()["critical_path"]["parameter_gather"] == 0.0


def test_what_is_held_in_flight() -> None:
    for schedule, expected in (("1f1b", [4, 3, 2, 1]), ("gpipe", [8, 8, 8, 8]), ("zb-h1", [4, 4, 4, 4])):
        found = replay(LAYERS, f"pp=4,schedule={schedule}", 8)
        assert [found.rank(r).memory.in_flight for r in range(4)] == expected
    held = [replay(LAYERS, "pp=4,schedule=gpipe", m).rank(0).memory.by_category_bytes["activations"] for m in (2, 4)]
    assert held[1] > 1.7 * held[0]


def test_stages_send_what_crosses_the_cut() -> None:
    found = replay(training(width=64), "pp=2", 4)
    assert found.parallel is not None
    run = found.parallel.run
    sends = [run.priced.graph.ops[op] for op in np.unique(run.step.op[run.step.op >= 0]).tolist()]
    assert [op.attributes for op in sends] == [{"bytes": 128, "ranks": 2, "stride": 1}] * len(sends)
    assert len(sends) == 2
    assert {op.phase for op in sends} == {"forward", "backward"}


def test_a_tied_weight_stands_on_both_ends_and_its_gradient_is_summed() -> None:
    tied, apart = (
        replay(training(layers=4, tied=t), "pp=4", 8, costs=Even(communication_s=1e-3)) for t in (True, False)
    )
    assert [tied.rank(r).parameters for r in range(4)] == [apart.rank(r).parameters for r in range(4)]
    shares = {s.name: s.kernels for s in tied.top_ops(100)}
    assert shares["_c10d_functional.all_reduce.default"] == 2
    assert "_c10d_functional.all_reduce.default" not in {s.name for s in apart.top_ops(100)}


def test_inference_runs_through_the_pipeline() -> None:
    graph = transformer(layers=4)
    whole = replay_roofline(graph, system(count=1), batch=4)
    found = replay_roofline(graph, system(count=4), plan="pp=4", batch=4)
    assert found.phases_s["backward"] == found.phases_s["optimizer"] == 0.0
    assert found.flops == whole.flops
    assert found.breakdown_s["bubble"] > 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("pp=16", "tp · cp · dp · pp = 1 · 1 · 1 · 16 = 16 and the system has 8"),
        ("pp=4,dp=2,microbatch=3", "--batch 16 is not a multiple of dp · microbatch = 2 · 3 = 6"),
        ("pp=8,interleave=4,microbatch=2", "pp · interleave = 32 stages and stack has 8 layers"),
        ("pp=8,interleave=2", "pp · interleave = 16 stages and stack has 8 layers (model.layers.*): nearest is"),
        ("dp=8,cp=1,ep=3", "nearest"),
        ("dp=3", "and the system has 8 accelerators"),
        ("pp=8,schedule=pipe", "schedule"),
        ("wide=8", "wide"),
    ],
)
def test_bad_plans_are_one_clear_error(plan: str, message: str) -> None:
    with pytest.raises(ForetraceError, match=None) as error:
        replay(GRAPH, plan, 16, on=system(count=8))
    assert message in str(error.value)


def test_layers_may_be_given() -> None:
    found = replay(LAYERS, "pp=2", 4, split=(6, 2))
    assert [found.rank(r).layers for r in range(2)] == [6, 2]
    with pytest.raises(PlanError, match="sum to 8"):
        replay(LAYERS, "pp=2", 4, split=(6, 3))


def test_ranks_that_are_not_there() -> None:
    found = replay(GRAPH, "pp=2,dp=2", 4)
    with pytest.raises(UnknownNameError, match="ranks 0 to 3"):
        found.rank(4)
    with pytest.raises(PlanError, match="below 4"):
        replay(GRAPH, "pp=2,dp=2", 4, speeds={4: 0.5})
    with pytest.raises(UnknownNameError, match="give a plan"):
        replay_roofline(GRAPH, system()).rank(0)


def test_the_trace_has_every_kernel_of_a_pipeline() -> None:
    found = replay(GRAPH, "pp=2,dp=2,zero=3", 8, costs=Even(communication_s=1e-4), execution="eager")
    trace = found.trace
    assert np.unique(trace.rank).tolist() == [0, 2]
    kernels = trace.select(~trace.kind.isin(["launch"]))
    assert len(kernels) == found.kernels
    for rank in (0, 2):
        on = kernels.select((kernels.rank == rank) & kernels.stream.isin(["compute"]))
        order = np.argsort(on.start_s, kind="stable")
        assert (on.start_s[order][1:] >= on.end_s[order][:-1] - 2e-12).all()
        assert on.duration_s.sum() == pytest.approx(found.rank(rank).breakdown_s["compute"], rel=1e-6)
    assert trace.span_s == pytest.approx(found.time_s)
    assert len(found.trace_of([3])) == len(trace.select(trace.rank == 2))
    with pytest.raises(UnknownNameError):
        found.trace_of([7])


def test_replaying_a_plan_imports_nothing_heavy(tmp_path: Path) -> None:
    save_graph(GRAPH, tmp_path / "stack.graph")
    code = (
        "import sys; from foretrace.ir import load_graph; from foretrace.replay import replay_graph;"
        "replay_graph(load_graph(sys.argv[1]), 'h100-sxm:8', plan='pp=2,dp=4', batch=16).to_json();"
        "print(sorted({'torch', 'numba', 'pyarrow', 'networkx', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "stack.graph"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
