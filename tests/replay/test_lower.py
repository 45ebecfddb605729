"""Exact start times of a small MLP in every execution mode, and what waits for what."""

import pytest

from foretrace.ir import ForetraceError, OpKind, Role, UnknownNameError
from foretrace.replay import Result
from foretrace.replay.engine import TICKS_PER_SECOND
from foretrace.replay.lower import GUARD_PER_MODULE_S, GUARD_S, VIEW_DISPATCH_SHARE
from tests.replay.models import BATCH, Builder, mlp, replay_roofline, system

MATMUL_US = 5.29408  # (1,024 + 524,288 + 4,096) bytes at 100 GB/s
FLOOR_US = 1.0  # gelu and mul move 8,192 bytes: 0.08 us


def nodes(result: Result) -> list[tuple[str, int, float, float]]:
    """(stream, op, start us, duration us) of every node by start, host first."""
    program, timeline = result.program, result.timeline
    us = TICKS_PER_SECOND // 10**6
    names = ("host", "compute", "communication")
    rows = [
        (names[s], int(op), round(start / us, 5), round(duration / us, 5))
        for s, op, start, duration in zip(
            program.stream, program.op, timeline.start, timeline.schedule.duration, strict=True
        )
    ]
    return sorted(rows, key=lambda r: (r[2], r[0] != "host"))


def test_constants_of_the_listed_times() -> None:
    assert (VIEW_DISPATCH_SHARE, GUARD_S, GUARD_PER_MODULE_S) == (0.75, 40e-6, 1e-6)


def test_eager_issues_every_op_and_the_device_follows() -> None:
    assert nodes(replay_roofline(mlp(), system())) == [
        ("host", 0, 0.0, 4.0),
        ("host", 1, 4.0, 4.0),
        ("compute", 0, 4.0, MATMUL_US),
        ("host", 2, 8.0, 3.0),  # the view: three quarters of a dispatch, no kernel
        ("compute", 1, 9.29408, FLOOR_US),  # after the matmul, issued at 8
        ("host", 3, 11.0, 4.0),
        ("host", 4, 15.0, 4.0),
        ("compute", 3, 15.0, FLOOR_US),
        ("compute", 4, 19.0, MATMUL_US),
    ]


def test_compiled_fuses_and_launches() -> None:
    result = replay_roofline(mlp(), system(), execution="compiled")
    assert [op.name for op in result.table.graph.ops] == ["aten.mm.default", "fused(gelu, mul)", "aten.mm.default"]
    assert nodes(result) == [
        ("host", -1, 0.0, 43.0),  # guards: 40 us and 1 us a module
        ("host", 0, 43.0, 2.0),
        ("host", 1, 45.0, 2.0),
        ("compute", 0, 45.0, MATMUL_US),
        ("host", 2, 47.0, 2.0),
        ("compute", 1, 50.29408, FLOOR_US),
        ("compute", 2, 51.29408, MATMUL_US),
    ]


def test_cudagraph_launches_once() -> None:
    assert nodes(replay_roofline(mlp(), system(), execution="cudagraph")) == [
        ("host", -1, 0.0, 10.0),
        ("compute", 0, 10.0, MATMUL_US),
        ("compute", 1, 15.29408, FLOOR_US),
        ("compute", 3, 16.29408, FLOOR_US),
        ("compute", 4, 17.29408, MATMUL_US),
    ]


def test_a_cpu_is_its_own_host() -> None:
    assert nodes(replay_roofline(mlp(), system("cpu"))) == [
        ("host", 0, 0.0, 4.0),
        ("compute", 0, 4.0, MATMUL_US),
        ("host", 1, 9.29408, 4.0),
        ("compute", 1, 13.29408, FLOOR_US),
        ("host", 2, 14.29408, 3.0),
        ("host", 3, 17.29408, 4.0),
        ("compute", 3, 21.29408, FLOOR_US),
        ("host", 4, 22.29408, 4.0),
        ("compute", 4, 26.29408, MATMUL_US),
    ]


def test_item_blocks_the_host_until_the_value_is_there() -> None:
    b = Builder()
    x = b.tensor("x", BATCH, 256, role=Role.INPUT)
    y = b.matmul(x, b.weight("w", 256, 1024))
    b.op(OpKind.HOST, "aten._local_scalar_dense.default", [b.view(y, 1024, BATCH)], [])
    b.pointwise("gelu", y)
    assert nodes(replay_roofline(b.graph(), system())) == [
        ("host", 0, 0.0, 4.0),
        ("host", 1, 4.0, 3.0),
        ("compute", 0, 4.0, MATMUL_US),
        ("host", 2, 9.29408, 3.0),
        ("host", 3, 12.29408, 4.0),
        ("compute", 3, 16.29408, FLOOR_US),
    ]


def test_an_allocation_like_another_tensor_does_not_block() -> None:
    b = Builder()
    y = b.matmul(b.tensor("x", BATCH, 256, role=Role.INPUT), b.weight("w", 256, 1024))
    b.op(OpKind.HOST, "aten.empty_like.default", [y], [b.tensor("e", BATCH, 1024)])
    assert ("host", 1, 4.0, 3.0) in nodes(replay_roofline(b.graph(), system()))


def test_a_collective_runs_beside_compute_and_its_readers_wait() -> None:
    b = Builder()
    x = b.tensor("x", 50_000, role=Role.INPUT)  # 100 kB: 2 us to read and write
    r = b.tensor("r", 50_000)
    b.op(OpKind.COLLECTIVE, "all_reduce", [x], [r])
    b.pointwise("neg", x)
    b.pointwise("neg", r)
    result = replay_roofline(b.graph(), system(dispatch_s=1e-7))
    assert [n for n in nodes(result) if n[0] != "host"] == [
        ("communication", 0, 0.1, 2.0),
        ("compute", 1, 0.2, 2.0),
        ("compute", 2, 2.2, 2.0),
    ]
    assert result.unmodelled_ops == ("all_reduce",)
    assert result.breakdown_s["exposed_communication"] == pytest.approx(0.1e-6)


def test_refusals_name_the_fix() -> None:
    with pytest.raises(ForetraceError, match="execution cudagraph and serving: round is a CPU"):
        replay_roofline(mlp(), system("cpu"), execution="cudagraph")
    with pytest.raises(UnknownNameError, match="unknown execution 'eagre'; nearest: eager"):
        replay_roofline(mlp(), system(), execution="eagre")
    with pytest.raises(UnknownNameError, match="unknown cost model 'roofine'; nearest: roofline"):
        replay_roofline(mlp(), system(), costs="roofine")
    with pytest.raises(ForetraceError, match="8 and the system has 1 accelerators"):
        replay_roofline(mlp(), system(), plan="tp=8")
    with pytest.raises(ForetraceError, match="batch=0"):
        replay_roofline(mlp(), system(), batch=0)
    with pytest.raises(UnknownNameError, match="unknown symbol 'context'"):
        replay_roofline(mlp(), system(), context=5)
    with pytest.raises(ForetraceError, match=r"a tensor of .* bytes at batch=1000000000000000"):
        replay_roofline(mlp(), system(), batch=10**15)
