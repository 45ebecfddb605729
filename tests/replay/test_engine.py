"""The discrete-event core: exact start times, both engines against each other, properties, and bad input."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import GraphError, UnknownNameError
from foretrace.replay import engine as engine_module
from foretrace.replay.engine import (
    TICKS_PER_SECOND,
    Engine,
    Schedule,
    Timeline,
    in_order,
    run,
    seconds_from_ticks,
    ticks_from_seconds,
)

ENGINES: list[Engine] = ["reference", "compiled"]


def build(
    duration: Sequence[int],
    resource: Sequence[int],
    edges: Sequence[tuple[int, int]] = (),
    in_order: Sequence[bool] | None = None,
    **columns: Any,
) -> Schedule:
    if in_order is None:
        in_order = [False] * (max(resource, default=0) + 1)
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    return Schedule.from_edges(duration, resource, pairs[:, 0], pairs[:, 1], in_order, **columns)


@st.composite
def schedules(
    draw: st.DrawFn,
    ordered: st.SearchStrategy[bool] = st.booleans(),  # noqa: B008
    release: st.SearchStrategy[int] = st.integers(0, 6),  # noqa: B008
) -> Schedule:
    """Random DAGs that finish: edges and in-order queues follow one hidden order of the nodes."""
    nodes, resources = draw(st.integers(0, 25)), draw(st.integers(1, 5))

    def column(values: st.SearchStrategy[Any], size: int = nodes) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    rank = np.array(draw(st.permutations(range(nodes))), np.int64)
    node = st.integers(0, max(nodes - 1, 0))
    pairs = draw(st.lists(st.tuples(node, node), max_size=3 * nodes)) if nodes else []
    edges = [(a, b) if rank[a] < rank[b] else (b, a) for a, b in pairs if a != b]
    resource = column(st.integers(0, resources - 1))
    in_order = column(ordered, resources)
    drawn = column(st.integers(-2, 2))
    priority = [rank[i] if in_order[resource[i]] else drawn[i] for i in range(nodes)]
    duration, not_before = column(st.integers(0, 4)), column(release)
    return build(duration, resource, edges, in_order, priority=np.array(priority, np.int64), not_before=not_before)


def longest_path(schedule: Schedule) -> int:
    """The longest chain of durations over the edges alone, by repeated relaxation."""
    finish = schedule.duration.copy()
    for _ in range(schedule.nodes):
        np.maximum.at(finish, schedule.successors, finish[schedule.sources] + schedule.duration[schedule.successors])
    return int(finish.max(initial=0))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


# Exact times.


@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        pytest.param(build([], []), [], id="empty"),
        pytest.param(build([5], [0]), [0], id="one"),
        pytest.param(build([2, 3, 4], [0, 0, 0], [(0, 1), (1, 2)]), [0, 2, 5], id="chain"),
        pytest.param(build([2, 3], [0, 1]), [0, 0], id="parallel"),
        pytest.param(build([2, 3, 1], [0, 0, 0]), [0, 2, 5], id="ties-by-id"),
        pytest.param(build([2, 3, 1], [0, 0, 0], priority=[2, 1, 0]), [4, 1, 0], id="priority"),
        # 0 and 1 end together at 2: both drain before 2 (priority 1) and 3 (priority 0) compete.
        pytest.param(
            build([2, 2, 1, 1], [0, 1, 2, 2], [(0, 2), (1, 3)], priority=[0, 0, 1, 0]),
            [0, 0, 3, 2],
            id="completions-drain-first",
        ),
        # No pre-emption: 2 is better, and becomes ready while 1 runs.
        pytest.param(build([1, 5, 1], [0, 1, 1], [(0, 2)], priority=[0, 9, 0]), [0, 0, 5], id="no-pre-emption"),
        pytest.param(build([0, 0, 0, 3], [0, 0, 0, 0], [(2, 0), (0, 1)]), [0, 0, 0, 0], id="zeros-share-a-tick"),
        # Rounds: 1 takes resource 1 in the first round of tick 0; 2 is freed by a zero in the second.
        pytest.param(build([0, 4, 1], [0, 1, 1], [(0, 2)], priority=[0, 9, 0]), [0, 0, 4], id="zero-too-late"),
        pytest.param(build([0, 4, 1], [0, 1, 1], [(0, 1)]), [0, 1, 0], id="zero-then-next-round"),
        # The head (1) waits for 0; behind it 2 is ready, and only a resource not in order lets it pass.
        pytest.param(build([5, 1, 1], [0, 1, 1], [(0, 1)], in_order=[True, True]), [0, 5, 6], id="in-order-blocks"),
        pytest.param(
            build([5, 1, 1], [0, 1, 1], [(0, 1)], in_order=[True, False]), [0, 5, 0], id="out-of-order-passes"
        ),
        pytest.param(
            build([1, 1, 1], [0, 0, 0], in_order=[True], priority=[1, 0, 0]),
            [2, 0, 1],
            id="in-order-priority",
        ),
        pytest.param(build([1, 1], [0, 0], not_before=[7, 0]), [7, 0], id="release"),
        pytest.param(build([1, 1], [0, 0], in_order=[True], not_before=[7, 0]), [7, 8], id="release-blocks-queue"),
        pytest.param(build([1, 1], [0, 1], [(0, 1)], not_before=[0, 9]), [0, 9], id="release-after-edge"),
        # 1 is released at the tick at which 0 ends: both count before the resource chooses.
        pytest.param(
            build([3, 1, 1], [0, 0, 0], priority=[0, 1, 2], not_before=[0, 3, 0]),
            [0, 3, 4],
            id="release-at-end",
        ),
        pytest.param(build([1, 1], [0, 1], [(0, 1), (0, 1)]), [0, 1], id="duplicate-edge"),
    ],
)
def test_start_times(schedule: Schedule, start: list[int], engine: Engine) -> None:
    assert run(schedule, engine).start.tolist() == start


def test_timeline(engine: Engine) -> None:
    # Resource 0: 0 then 2; resource 1: 1 then 3. 3 waits for 2 (edge), 2 for 0 (resource); resource 2 idles.
    timeline = run(build([4, 1, 3, 2], [0, 1, 0, 1], [(2, 3), (1, 3)], [False, True, True]), engine)
    assert timeline.start.tolist() == [0, 0, 4, 7]
    assert timeline.end.tolist() == [4, 1, 7, 9]
    assert timeline.previous.tolist() == [-1, -1, 0, 1]
    assert timeline.makespan == 9
    assert timeline.busy.tolist() == [7, 3, 0]
    assert timeline.critical_path().tolist() == [0, 2, 3]


def test_empty_timeline(engine: Engine) -> None:
    timeline = run(build([], [], in_order=[]), engine)
    assert timeline.makespan == 0
    assert timeline.busy.tolist() == []
    assert timeline.critical_path().tolist() == []


def test_critical_path_prefers_edges_then_the_least_id(engine: Engine) -> None:
    # 0, 1 and 2 all end as 3 starts: 0 before it on its resource, 1 and 2 with an edge to it.
    timeline = run(build([2, 2, 2, 1], [0, 1, 2, 0], [(2, 3), (1, 3)]), engine)
    assert timeline.critical_path().tolist() == [1, 3]


def test_critical_path_begins_at_a_release(engine: Engine) -> None:
    timeline = run(build([3, 2, 1], [0, 1, 1], [(1, 2)], not_before=[0, 10, 0]), engine)
    assert timeline.critical_path().tolist() == [1, 2]


def test_critical_path_crosses_zero_durations(engine: Engine) -> None:
    timeline = run(build([2, 0, 0, 1], [0, 0, 0, 0], [(0, 2), (2, 1), (1, 3)]), engine)
    assert timeline.critical_path().tolist() == [0, 2, 1, 3]


# Properties.


@given(schedules())
def test_the_engines_agree_and_repeat_to_the_byte(schedule: Schedule) -> None:
    timelines = [run(schedule, engine) for engine in (*ENGINES, *ENGINES)]
    assert len({(t.start.tobytes(), t.previous.tobytes()) for t in timelines}) == 1


@pytest.mark.parametrize("resources", [3, 500])
@pytest.mark.parametrize("ordered", [0.0, 0.5, 1.0])
def test_the_engines_agree_on_larger_graphs(resources: int, ordered: float) -> None:
    rng = np.random.default_rng(7)
    nodes, edges = 5_000, 9_000
    source = rng.integers(0, nodes - 1, edges)
    target = source + 1 + rng.integers(0, nodes - 1 - source)
    in_order = rng.random(resources) < ordered
    resource = rng.integers(0, resources, nodes)
    priority = np.where(in_order[resource], 0, rng.integers(-3, 3, nodes))
    schedule = Schedule.from_edges(
        rng.integers(0, 5, nodes), resource, source, target, in_order,
        priority=priority, not_before=rng.integers(0, 2_000, nodes),
    )  # fmt: skip
    check(run(schedule, "reference"))
    assert run(schedule, "reference").start.tobytes() == run(schedule, "compiled").start.tobytes()


@given(schedules())
def test_in_order_resources_need_no_clock(schedule: Schedule) -> None:
    schedule = dataclasses.replace(schedule, in_order=np.ones_like(schedule.in_order))
    try:
        timelines = [run(schedule, engine) for engine in ("reference", "in_order", "auto")]
    except GraphError:  # all in order, they can wait on each other for ever
        with pytest.raises(GraphError):
            run(schedule, "in_order")
        return
    for timeline in timelines[1:]:
        assert timeline.start.tobytes() == timelines[0].start.tobytes()
        assert timeline.previous.tobytes() == timelines[0].previous.tobytes()
    start, previous = in_order.replay(schedule, compiled=True)
    assert start.tobytes() == timelines[0].start.tobytes()
    assert previous.tobytes() == timelines[0].previous.tobytes()


def check(timeline: Timeline) -> None:
    """Every rule of the semantics that a finished timeline shows."""
    schedule, start, end = timeline.schedule, timeline.start, timeline.end
    assert (start >= schedule.not_before).all()
    assert (end[schedule.sources] <= start[schedule.successors]).all()
    later = np.flatnonzero(timeline.previous >= 0)
    before = timeline.previous[later]
    assert (schedule.resource[before] == schedule.resource[later]).all()
    assert (end[before] <= start[later]).all()
    assert np.unique(before).size == before.size  # one chain per resource
    assert later.size == schedule.nodes - np.unique(schedule.resource).size
    ordered = schedule.in_order[schedule.resource[later]]
    keys = np.stack([schedule.priority, np.arange(schedule.nodes)], axis=1)
    for a, b in zip(before[ordered], later[ordered], strict=True):
        assert tuple(keys[a]) < tuple(keys[b])
    # Never idle without cause: a node starts at its release, or as something that held it ends.
    ready = schedule.not_before.copy()
    np.maximum.at(ready, schedule.successors, end[schedule.sources])
    np.maximum.at(ready, later, end[before])
    assert (start == ready).all()
    assert timeline.busy.sum() == schedule.duration.sum()


@given(schedules())
def test_the_semantics_hold(schedule: Schedule) -> None:
    check(run(schedule, "reference"))


@given(schedules())
def test_the_critical_path_is_a_chain_that_ends_the_run(schedule: Schedule) -> None:
    timeline = run(schedule, "reference")
    path = timeline.critical_path()
    assert (timeline.end[path[:-1]] == timeline.start[path[1:]]).all()
    edges = set(zip(schedule.sources.tolist(), schedule.successors.tolist(), strict=True))
    for a, b in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        assert (a, b) in edges or timeline.previous[b] == a
    if path.size:
        assert timeline.end[path[-1]] == timeline.makespan
        assert timeline.start[path[0]] == schedule.not_before[path[0]]


@given(schedules(release=st.just(0)))
def test_makespan_bounds(schedule: Schedule) -> None:
    timeline = run(schedule, "reference")
    assert timeline.makespan == schedule.duration[timeline.critical_path()].sum()
    assert timeline.makespan >= longest_path(schedule) >= schedule.duration.max(initial=0)
    assert timeline.makespan >= timeline.busy.max(initial=0)
    assert timeline.makespan <= schedule.duration.sum()


@given(schedules(ordered=st.just(True)), st.data())
def test_shorter_durations_are_never_slower_on_in_order_resources(schedule: Schedule, data: st.DataObject) -> None:
    cut = [data.draw(st.integers(0, d)) for d in schedule.duration.tolist()]
    before = run(schedule, "reference")
    after = run(dataclasses.replace(schedule, duration=np.array(cut, np.int64)), "reference")
    assert (after.start <= before.start).all()


@given(schedules(), st.randoms(use_true_random=False))
def test_the_order_of_edges_changes_nothing(schedule: Schedule, random: Any) -> None:
    edges = list(zip(schedule.sources.tolist(), schedule.successors.tolist(), strict=True))
    random.shuffle(edges)
    shuffled = build(
        schedule.duration.tolist(), schedule.resource.tolist(), edges, schedule.in_order.tolist(),
        priority=schedule.priority, not_before=schedule.not_before,
    )  # fmt: skip
    for engine in ENGINES:
        a, b = run(schedule, engine), run(shuffled, engine)
        assert a.start.tobytes() == b.start.tobytes()
        assert a.critical_path().tobytes() == b.critical_path().tobytes()


def test_auto_compiles_large_graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretrace.replay.engine import compiled

    def refuse(schedule: Schedule) -> None:
        raise RuntimeError("compiled")

    monkeypatch.setattr(compiled, "replay", refuse)
    monkeypatch.setattr(engine_module, "COMPILED_FROM", 3)
    assert run(build([1, 1], [0, 0])).makespan == 2
    with pytest.raises(RuntimeError, match="compiled"):
        run(build([1, 1, 1], [0, 0, 0]))


def test_many_small_graphs_are_compiled_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretrace.replay.engine import longest_path

    def refuse(*columns: Any) -> None:
        raise RuntimeError("compiled")

    monkeypatch.setattr(longest_path, "starts_of", refuse)
    monkeypatch.setattr(engine_module, "COMPILED_AFTER", 3)
    monkeypatch.setattr(engine_module, "_uncompiled", [0])
    chain = build([1, 1], [0, 0], in_order=[True])
    assert [run(chain).makespan for _ in range(2)] == [2, 2]
    with pytest.raises(RuntimeError, match="compiled"):
        run(chain)


def test_small_graphs_import_no_numba() -> None:
    code = (
        "import sys; from foretrace.replay.engine import Schedule, run; "
        "run(Schedule.from_edges([1], [0], [], [], [True])); sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What cannot run.


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        pytest.param(
            build([1], [0], [(0, 0)]),
            "cycle of dependencies: 0 -> 0; 1 of 1 nodes can never run: remove one of these edges",
            id="self-loop",
        ),
        pytest.param(
            build([1] * 5, [0] * 5, [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4)]),
            "cycle of dependencies: 1 -> 2 -> 3 -> 1; 4 of 5 nodes can never run: remove one of these edges",
            id="cycle",
        ),
        # Stream 0 runs 0 then 1, stream 1 runs 2 then 3; but 0 needs 3 and 2 needs 1.
        pytest.param(
            build([1] * 4, [0, 0, 1, 1], [(3, 0), (1, 2)], [True, True]),
            "in-order deadlock: 0 => 1 -> 2 => 3 -> 0 (=> is behind in an in-order queue); 4 of 4 nodes can "
            "never run: swap the priorities across one =>, or remove an edge",
            id="deadlock",
        ),
        pytest.param(
            build([1, 1], [0, 0], [(0, 1)], [True], priority=[1, 0]),
            "in-order deadlock: 0 -> 1 => 0 (=> is behind in an in-order queue); 2 of 2 nodes can never run: "
            "swap the priorities across one =>, or remove an edge",
            id="against-priority",
        ),
    ],
)
def test_waiting_for_ever(schedule: Schedule, message: str, engine: Engine) -> None:
    with pytest.raises(GraphError) as error:
        run(schedule, engine)
    assert str(error.value) == message


def test_labels_name_the_cycle(engine: Engine) -> None:
    with pytest.raises(GraphError, match="cycle of dependencies: add -> relu -> add;"):
        run(build([1, 1], [0, 0], [(0, 1), (1, 0)]), engine, label=["add", "relu"].__getitem__)


def test_a_long_cycle_is_cut() -> None:
    ring = [(i, (i + 1) % 1000) for i in range(1000)]
    with pytest.raises(GraphError) as error:
        run(build([1] * 1000, [0] * 1000, ring))
    assert "... (980 more) -> " in str(error.value)
    assert len(str(error.value)) < 250


def test_an_out_of_order_resource_undoes_the_deadlock(engine: Engine) -> None:
    schedule = build([1] * 4, [0, 0, 1, 1], [(3, 0), (1, 2)], [False, True])
    with pytest.raises(GraphError):
        run(dataclasses.replace(schedule, in_order=np.array([True, True])), engine)
    assert run(schedule, engine).start.tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, -1], [0, 0]), "duration[1]: expected 0 or more and less than 9223372036854775807, got -1"),
        (([1, 1], [0, 2], (), [True, True]), "resource[1]: expected 0 or more and less than 2, got 2"),
        (([1, 1], [0, -1], (), [True]), "resource[1]: expected 0 or more and less than 1, got -1"),
        (([1, 1], [0, 0], [(0, 1), (1, 2)]), "target[1]: expected 0 or more and less than 2, got 2"),
        (([1, 1], [0, 0], [(0, 1), (-1, 0)]), "source[1]: expected 0 or more and less than 2, got -1"),
        (([], [], [(0, 0)], [True]), "source[0]: expected 0 or more and less than 0, got 0"),
        (([2**62, 2**62], [0, 0]), "duration: the sum with the last release is 9223372036854775808 ticks, more"),
        (([1.5], [0]), "duration: expected integers that fit an int64, got float64"),
        ((np.array([2**63], np.uint64), [0]), "duration: expected integers that fit an int64, got uint64"),
        (([1, 1], [0]), "resource: expected shape (2,), got (1,)"),
        (([1], [0], (), [0]), "in_order: expected one bool per resource, got int64(1,)"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(GraphError, match=re.escape(message)):
        build(*arguments)


def test_bad_columns() -> None:
    with pytest.raises(GraphError, match=r"source: expected shape \(1,\), got \(2,\)"):
        Schedule.from_edges([1, 1], [0, 0], [0, 1], [1], [True])
    with pytest.raises(GraphError, match=r"not_before\[0\]: expected 0 or more .*, got -5"):
        build([1], [0], not_before=[-5])
    with pytest.raises(GraphError, match="the sum with the last release"):
        build([2], [0], not_before=2**63 - 2)


@pytest.mark.parametrize("offsets", [[0, 1, 3, 2], [0, 2, 1, 2], [1, 1, 1, 2], [0, 1, 1, 1]])
def test_bad_offsets(offsets: list[int]) -> None:
    schedule = build([1, 1, 1], [0, 0, 0], [(0, 1), (1, 2)])
    with pytest.raises(GraphError, match="successor_offsets"):
        dataclasses.replace(schedule, successor_offsets=np.array(offsets))


def test_unknown_engine() -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'compile'; nearest: compiled"):
        run(build([1], [0]), "compile")  # type: ignore[arg-type]


def test_a_schedule_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        build([1], [0]).duration[0] = -1


# Ticks.


def test_ticks() -> None:
    assert TICKS_PER_SECOND == 10**12
    assert ticks_from_seconds([0, 1e-12, 1.4e-12, 2.5e-12, 3.5]).tolist() == [0, 1, 1, 2, 3_500_000_000_000]
    assert seconds_from_ticks([0, 1, 3_500_000_000_000]).tolist() == [0.0, 1e-12, 3.5]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e7, -1e7])
def test_ticks_never_overflow(seconds: float) -> None:
    with pytest.raises(GraphError, match="seconds: expected numbers within"):
        ticks_from_seconds([1.0, seconds])


@given(st.integers(0, 2**53))
def test_ticks_and_seconds_round_trip(ticks: int) -> None:
    assert abs(int(ticks_from_seconds(seconds_from_ticks(ticks))) - ticks) <= 1
