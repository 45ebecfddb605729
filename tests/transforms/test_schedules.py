"""Pipeline schedules: hand-computed tables, textbook bubbles timed by the replay engine, refusals, deadlocks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.replay.engine import Schedule, Timeline, run
from foretrace.transforms.schedules import (
    NAMED,
    Pass,
    PipelineSchedule,
    ScheduleError,
    check,
    dependencies,
    dualpipe,
    in_flight,
    load_schedule,
    render,
    start_times,
)

DURATIONS = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
"""F, I and W."""


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = tuple(NAMED)) -> PipelineSchedule:
    name = draw(st.sampled_from(names))
    ranks, interleave, micro_batches = draw(st.integers(1, 9)), 1, draw(st.integers(1, 24))
    if name == "interleaved":
        interleave, micro_batches = draw(st.integers(2, 4)), ranks * draw(st.integers(1, 4))
    if name == "dualpipe":
        ranks = 2 * draw(st.integers(1, 5))
        micro_batches = 2 * ranks + 2 * draw(st.integers(0, 6))
    return load_schedule(name, ranks, interleave, micro_batches)


def by_letters(text: str) -> PipelineSchedule:
    """A line a rank of passes such as F0 (micro-batch 0 of the stage with the rank's number) or F0/1 (of stage 1)."""
    rows = []
    for rank, line in enumerate(text.strip().splitlines()):
        for slot, word in enumerate(line.split()):
            micro_batch, _, stage = word[1:].partition("/")
            rows.append((rank, slot, int(micro_batch), int(stage or rank), "FBIW".index(word[0])))
    columns = np.array(rows).T
    ranks, _, micro_batches, stages, _ = (int(c.max()) + 1 for c in columns)
    return PipelineSchedule("mine", ranks, stages, micro_batches, *columns)


def letters(schedule: PipelineSchedule, rank: int) -> str:
    rows = np.flatnonzero(schedule.rank == rank)
    return " ".join(f"{Pass(int(schedule.work[r])).letter}{schedule.micro_batch[r]}" for r in rows)


def timed(schedule: PipelineSchedule, forward: int, on_input: int, on_weight: int) -> Timeline:
    """*schedule* with equal stages and free communication, in the replay engine."""
    duration = np.array((forward, on_input + on_weight, on_input, on_weight))[schedule.work]
    source, target = dependencies(schedule)
    return run(Schedule.from_edges(duration, schedule.rank, source, target, np.ones(schedule.ranks, np.bool_)))


def bubbles(timeline: Timeline) -> list[int]:
    return [timeline.makespan - int(busy) for busy in timeline.busy]


# --- by hand ------------------------------------------------------------------------------------------


def test_gpipe_by_hand() -> None:
    schedule = load_schedule("gpipe", 2, 1, 3)
    assert [letters(schedule, r) for r in range(2)] == ["F0 F1 F2 B0 B1 B2"] * 2
    assert schedule.stage.tolist() == [0] * 6 + [1] * 6
    assert (schedule.rows, schedule.stages, in_flight(schedule).tolist()) == (12, 2, [3, 3])


def test_1f1b_by_hand() -> None:
    schedule = load_schedule("1f1b", 3, 1, 4)
    assert [letters(schedule, r) for r in range(3)] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]
    assert letters(load_schedule("1f1b", 4, 1, 2), 0) == "F0 F1 B0 B1"


def test_interleaved_by_hand() -> None:
    schedule = load_schedule("interleaved", 2, 2, 4)
    assert [letters(schedule, r) for r in range(2)] == [
        "F0 F1 F0 F1 F2 B0 F3 B1 F2 B0 F3 B1 B2 B3 B2 B3",
        "F0 F1 F0 B0 F1 B1 F2 B0 F3 B1 F2 B2 F3 B3 B2 B3",
    ]
    assert schedule.stage[:8].tolist() == [0, 0, 2, 2, 0, 2, 0, 2]
    assert schedule.placement().tolist() == [[0, 0], [0, 2], [1, 1], [1, 3]]


def test_zb_h1_by_hand() -> None:
    schedule = load_schedule("zb-h1", 2, 1, 3)
    assert [letters(schedule, r) for r in range(2)] == ["F0 F1 I0 W0 F2 I1 W1 I2 W2", "F0 I0 F1 I1 W0 F2 I2 W1 W2"]


def test_dualpipe_by_hand() -> None:
    schedule = load_schedule("dualpipe", 2, 1, 4)
    assert [letters(schedule, r) for r in range(2)] == [
        "F0 F2 F1 B2 F3 B0 B3 I1 W1",
        "F2 F0 F3 B0 F1 B2 B1 I3 W3",
    ]
    assert schedule.placement().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # parameters are held twice
    # Table 2 of the report: activations of PP + 1 micro-batches.
    assert in_flight(dualpipe(8, 20)).tolist() == [9] * 8


def test_dependencies_by_hand() -> None:
    schedule = by_letters("F0 I0 W0\nF0 B0")
    edges = {
        (schedule.describe(int(a)), schedule.describe(int(b))) for a, b in zip(*dependencies(schedule), strict=True)
    }
    first, last = "rank 0 slot {}: {} stage 0 micro-batch 0", "rank 1 slot {}: {} stage 1 micro-batch 0"
    assert edges == {
        (first.format(0, "F"), last.format(0, "F")),
        (first.format(0, "F"), first.format(1, "I")),
        (last.format(0, "F"), last.format(1, "B")),
        (last.format(1, "B"), first.format(1, "I")),
        (first.format(1, "I"), first.format(2, "W")),
    }


def test_the_picture() -> None:
    assert render(load_schedule("1f1b", 2, 1, 3)) == (
        "rank 0  F0 F1 .  .  B0 -- F2 B1 -- .  B2 --\nrank 1  .  F0 B0 -- F1 B1 -- F2 B2 --\n"
    )
    assert render(load_schedule("zb-h1", 2, 1, 2), (1, 0, 2, 1)) == (
        "rank 0  F0 F1 .  .  I0 -- W0 I1 -- W1\nrank 1  .  F0 I0 -- F1 I1 -- W0 W1\n"
    )
    assert render(load_schedule("gpipe", 1, 1, 500), columns=40) == "rank 0  F0   F1   F2   F3   F4   F5 >\n"
    assert "F1/2" in render(load_schedule("interleaved", 2, 2, 2))
    with pytest.raises(ForetraceError, match="durations: expected 4"):
        render(load_schedule("gpipe", 1), (1, 2))


# --- textbook bubbles -----------------------------------------------------------------------------------


@given(schedules(("gpipe", "1f1b", "interleaved")), st.integers(1, 20))
def test_bubbles_of_whole_backwards(schedule: PipelineSchedule, forward: int) -> None:
    """GPipe and 1F1B (pp - 1)/(m + pp - 1), interleaved (pp - 1)/(v m + pp - 1) of the step, with B = 2 F."""
    timeline = timed(schedule, forward, forward, forward)
    interleave = schedule.stages // schedule.ranks
    slots = interleave * schedule.micro_batches + schedule.ranks - 1
    assert timeline.makespan == slots * 3 * forward
    assert bubbles(timeline) == [(schedule.ranks - 1) * 3 * forward] * schedule.ranks


@given(schedules(("zb-h1",)), DURATIONS)
def test_bubbles_of_zb_h1(schedule: PipelineSchedule, durations: tuple[int, int, int]) -> None:
    """(pp - 1)(F + I - W): Qi et al. 2023, arXiv:2401.10241, table 1. A longer W delays what waits behind it."""
    forward, on_input, on_weight = durations
    if schedule.micro_batches >= schedule.ranks:
        expected = (schedule.ranks - 1) * max(forward, on_input, forward + on_input - on_weight)
        assert bubbles(timed(schedule, *durations)) == [expected] * schedule.ranks


def test_the_bubble_of_zb_h1_is_a_third_of_1f1bs_where_all_are_equal() -> None:
    assert [bubbles(timed(load_schedule(name, 4, 1, 8), 1, 1, 1))[0] for name in ("1f1b", "zb-h1")] == [9, 3]


def _pairs_merged(schedule: PipelineSchedule, forward: int, on_input: int, on_weight: int, pair: int) -> Timeline:
    """*schedule* with each forward and the whole backward right behind it as one node of *pair* ticks."""
    work, rank = schedule.work, schedule.rank
    behind = np.zeros(schedule.rows, np.bool_)
    behind[1:] = (work[:-1] == Pass.FORWARD) & (work[1:] == Pass.BACKWARD) & (rank[1:] == rank[:-1])
    node = np.cumsum(~behind) - 1
    duration = np.array((forward, on_input + on_weight, on_input, on_weight))[work[~behind]]
    duration[node[behind]] = pair
    source, target = (node[rows] for rows in dependencies(schedule))
    apart = source != target
    resources = np.ones(schedule.ranks, np.bool_)
    return run(Schedule.from_edges(duration, rank[~behind], source[apart], target[apart], resources))


@given(schedules(("dualpipe",)), DURATIONS)
def test_bubbles_of_dualpipe(schedule: PipelineSchedule, durations: tuple[int, int, int]) -> None:
    """(pp/2 - 1)(F&B + B - 3W): DeepSeek-V3 report, arXiv:2412.19437, table 2, where neither F nor W exceeds I.

    As two rows a pair takes F + B, and the forward's result leaves after F: never more than the formula.
    """
    forward, on_input, other = durations
    on_weight = min(on_input, other)
    pair, backward = forward + on_input + on_weight, on_input + on_weight
    expected = (schedule.ranks // 2 - 1) * (pair + backward - 3 * on_weight + max(0, forward - on_input))
    merged = _pairs_merged(schedule, forward, on_input, on_weight, pair)
    assert bubbles(merged) == [expected] * schedule.ranks
    assert max(bubbles(timed(schedule, forward, on_input, on_weight))) <= expected


def test_the_bubble_of_dualpipe_shrinks_with_its_pairs() -> None:
    schedule = dualpipe(8, 20)  # F = I = W = 2 and B = 4, so F&B is 6 where nothing overlaps
    assert [max(bubbles(_pairs_merged(schedule, 2, 2, 2, pair))) for pair in (6, 5)] == [3 * 4, 3 * 3]


# --- any schedule ---------------------------------------------------------------------------------------


@given(schedules(), DURATIONS)
def test_every_named_schedule_is_complete_and_runs(schedule: PipelineSchedule, durations: tuple[int, int, int]) -> None:
    check(schedule)
    first = schedule.first_rows()
    assert all(schedule.slot[a:b].tolist() == list(range(b - a)) for a, b in pairwise(first.tolist()))
    timeline = timed(schedule, *durations)
    assert start_times(schedule, timeline.schedule.duration).tolist() == timeline.start.tolist()
    assert len(render(schedule).splitlines()) == schedule.ranks


@given(schedules(("gpipe", "1f1b", "zb-h1", "interleaved")))
def test_activations_in_flight(schedule: PipelineSchedule) -> None:
    ranks, m = schedule.ranks, schedule.micro_batches
    chunks = m * (schedule.stages // ranks)
    expected = {
        "gpipe": [m] * ranks,
        "1f1b": [min(ranks - r, m) for r in range(ranks)],
        "zb-h1": [min(ranks, m)] * ranks,
        "interleaved": [min(2 * (ranks - 1 - r) + chunks // m * ranks - ranks + 1, chunks) for r in range(ranks)],
    }
    assert in_flight(schedule).tolist() == expected[schedule.name]


@settings(max_examples=50)
@given(schedules(), st.randoms(use_true_random=False))
def test_rows_in_any_order_are_the_same_schedule(schedule: PipelineSchedule, random: object) -> None:
    order = np.array(sorted(range(schedule.rows), key=lambda _: random.random()))  # type: ignore[attr-defined]
    columns = [x[order] for x in (schedule.rank, schedule.slot, schedule.micro_batch, schedule.stage, schedule.work)]
    again = PipelineSchedule("again", schedule.ranks, schedule.stages, schedule.micro_batches, *columns)
    assert [letters(again, r) for r in range(again.ranks)] == [letters(schedule, r) for r in range(again.ranks)]
    assert not again.rank.flags.writeable


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("interleaved", 4, 2, 6), r"multiple of pp=4, got 6; nearest valid: 8"),
        (("interleaved", 4, 2, 1), r"multiple of pp=4, got 1; nearest valid: 4"),
        (("interleaved", 4, 1, 8), r"expected interleave of 2 or more, got 1; nearest valid: interleave=2, or sch"),
        (("1f1b", 4, 2, 8), r"interleave: schedule=1f1b .* nearest valid: interleave=1, or schedule=interleaved"),
        (("dualpipe", 3, 1, 8), r"expected an even pp, got 3; nearest valid: pp=4"),
        (("dualpipe", 4, 1, 6), r"at least 2 pp = 8, got 6; nearest valid: 8"),
        (("dualpipe", 4, 1, 11), r"got 11; nearest valid: 12"),
        (("gpipe", 0, 1, 8), r"pp: expected 1 or more, got 0; nearest valid: 1"),
        (("gpipe", 2, 1, 0), r"the number of micro-batches: expected 1 or more, got 0"),
        (("zb-h1", 1000, 1, 10**6), r"expected fewer micro-batches"),
    ],
)
def test_plans_without_a_schedule(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        load_schedule(*arguments)


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown schedule '1f1d'; nearest: 1f1b .*zb-h1.* \.csv or \.yaml"):
        load_schedule("1f1d", 4, 1, 8)
    assert load_schedule(" ZB-H1 ", 4, 1, 8).name == "zb-h1"


def test_a_deadlock_prints_its_cycle() -> None:
    with pytest.raises(ScheduleError) as caught:
        check(by_letters("F0 B0 F1 B1\nF0 F1 B0 B1"))
    assert str(caught.value) == (
        "schedule mine deadlocks: rank 0 slot 1: B stage 0 micro-batch 0\n"
        "  -> needs rank 1 slot 2: B stage 1 micro-batch 0\n"
        "  -> queued behind rank 1 slot 1: F stage 1 micro-batch 1\n"
        "  -> needs rank 0 slot 2: F stage 0 micro-batch 1\n"
        "  -> queued behind rank 0 slot 1: B stage 0 micro-batch 0"
    )
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 slot 0: B stage 0 micro-batch 0\n  -> needs"):
        start_times(by_letters("B0 F0"), [1, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F0 B0 F1", "stage 0 micro-batch 1: expected one backward or one backward-input, got none"),
        ("F0 B0 B1", "stage 0 micro-batch 1: expected one forward, got none"),
        ("F0 F0 B0", "stage 0 micro-batch 0: expected one forward, got 2: rank 0 slot 0, rank 0 slot 1"),
        ("F0 I0", "expected one backward-weight with each backward-input.*, got none"),
        ("F0 B0 W0", "none with a backward, got 1: rank 0 slot 2"),
        ("F0 B0 I0 W0", "expected one backward or one backward-input, got 2"),
        ("F0 I0\nF0 B0 W0/0", "a backward runs where its forward ran"),
        ("F99999999", "stage 0 micro-batch 0: expected one forward, got none"),
    ],
)
def test_incomplete_schedules(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(by_letters(text))


def test_two_passes_in_one_slot() -> None:
    schedule = PipelineSchedule("mine", 1, 1, 1, *np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1]]))
    with pytest.raises(ScheduleError, match=r"two passes share a slot: rank 0 slot 0: F .*; rank 0 slot 0: B"):
        check(schedule)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0], [0, 1], [0], [0], [0]), "slot: expected 1 rows"),
        (([0.5], [0], [0], [0], [0]), "rank: expected integers"),
        (([1], [0], [0], [0], [0]), r"rank\[0\]: expected 0 or more and less than 1, got 1"),
        (([0], [0], [0], [0], [4]), r"work\[0\]: expected 0 or more and less than 4, got 4"),
    ],
)
def test_columns_that_are_no_table(columns: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        PipelineSchedule("mine", 1, 1, 1, *map(np.array, columns))
