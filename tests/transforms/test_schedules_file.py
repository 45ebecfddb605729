"""Schedules in files: both forms read back, and what is wrong in one is named with its line."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError
from foretrace.transforms.schedules import (
    PipelineSchedule,
    ScheduleError,
    load_schedule,
    read_schedule,
    render,
    start_times,
    write_schedule,
)
from tests.transforms.test_schedules import schedules

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEADER = "rank,slot,micro_batch,stage,pass\n"
ROW = "{rank: 0, slot: 0, micro_batch: 0, stage: 0, pass: F}"


def columns(schedule: PipelineSchedule) -> list[list[int]]:
    fields = (schedule.rank, schedule.slot, schedule.micro_batch, schedule.stage, schedule.work)
    return [field.tolist() for field in fields]


@settings(max_examples=40, deadline=None)
@given(schedules())
def test_what_is_written_reads_back(schedule: PipelineSchedule) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".yaml"):
            path = Path(folder) / f"{schedule.name}{suffix}"
            write_schedule(schedule, path)
            again = load_schedule(path, schedule.ranks, schedule.stages // schedule.ranks, schedule.micro_batches)
            assert columns(again) == columns(schedule)
            assert again.name == schedule.name


@settings(max_examples=200, deadline=None)
@given(st.sampled_from((".csv", ".yaml")), st.data())
def test_damaged_files_are_read_or_refused(suffix: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_schedule(load_schedule("1f1b", 2, 1, 2), path := Path(folder) / f"mine{suffix}")
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        path.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
        with contextlib.suppress(ForetraceError):
            read_schedule(path)


@pytest.mark.checkout
def test_the_example_never_waits() -> None:
    path = EXAMPLES / "zero-bubble-two-ranks.csv"
    schedule = load_schedule(path, 2, 1, 4)
    start = start_times(schedule, [1] * schedule.rows)
    assert start.tolist() == [*range(12), *range(1, 13)]
    assert all(f"#   {line}\n" in path.read_text() for line in render(schedule).splitlines())


def test_columns_in_any_order_comments_letters_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('# by hand\n\n"pass", slot ,rank,stage,micro_batch\nB,9,0,0,0\nf,3,0,0,0\n')
    schedule = read_schedule(path)
    assert (schedule.name, columns(schedule)) == ("mine", [[0, 0], [3, 9], [0, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ScheduleError, "expected rows of rank, slot, micro_batch, stage, pass, got none"),
        (HEADER, ScheduleError, "got none"),
        (
            "rank;slot\n",
            FormatError,
            'mine.csv:1: expected the header rank,slot,micro_batch,stage,pass, got "rank;slot"',
        ),
        (HEADER + "0,0,0,0\n", ScheduleError, "mine.csv:2: expected 5 cells, got 4"),
        (HEADER + "0,0,0,0,F\n0,1,-1,0,B\n", ScheduleError, 'mine.csv:3: micro_batch: expected a whole number.*"-1"'),
        (HEADER + "0,0,0,0,forwrd\n", ScheduleError, 'mine.csv:2: unknown pass "forwrd"; nearest: forward'),
        (HEADER + "0,0,0,0,??\n", ScheduleError, "one of forward, backward, backward-input, backward-weight"),
        (HEADER + "0,0,0,0,B\n0,1,0,0,F\n", ScheduleError, "mine.csv: schedule mine deadlocks: rank 0 slot 0: B"),
        (
            HEADER + "0,0,999999999,999999999,F\n",
            ScheduleError,
            "stage 0 micro-batch 0: expected one forward, got none",
        ),
        (
            HEADER + "999999999,0,0,0,F\n999999999,1,0,0,B\n",
            ScheduleError,
            "passes on each of 1000000000 ranks, got none on rank 0",
        ),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, error: type[ForetraceError], message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_schedule(path)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ScheduleError, "expected a document with"),
        ("- 1\n", ScheduleError, "mine.yaml:1: expected a mapping"),
        ("schedule: 3\n", ScheduleError, "mine.yaml:1: expected a list of rows"),
        ("schedule: [3]\n", ScheduleError, "mine.yaml:1: expected a row such as"),
        ("name: x\n", ScheduleError, "expected rows of"),
        ("name: [x]\n", ScheduleError, "mine.yaml:1: expected a name"),
        ("schedul: []\n", ScheduleError, 'mine.yaml:1: unknown key "schedul"; nearest: schedule'),
        ("name: a\nname: b\n", ScheduleError, "mine.yaml:2: the key name stands here twice"),
        (
            f"schedule:\n- {ROW}\n- {{rank: 0, slot: 1}}\n",
            ScheduleError,
            "mine.yaml:3: the row has no micro_batch and no",
        ),
        ("schedule:\n- {rnk: 0}\n", ScheduleError, 'mine.yaml:2: unknown key "rnk"; nearest: rank'),
        ("schedule:\n- {rank: [0]}\n", ScheduleError, "mine.yaml:2: expected a number or a pass"),
        ("schedule:\n- {? [0] : 0}\n", ScheduleError, "mine.yaml:2: expected a key"),
        (f"schedule:\n- {ROW}\n--- 1\n", ScheduleError, "mine.yaml:3: expected one document"),
        ("schedule: [&a 1, *a]\n", FormatError, "mine.yaml:1: anchors, aliases and tags"),
        ("schedule: !!python/none []\n", FormatError, "mine.yaml:1: anchors, aliases and tags"),
        ("schedule: [\n", FormatError, "mine.yaml:2: not YAML"),
        ("schedule: " + "[" * 100_000, ForetraceError, "mine.yaml"),
        ("name: \x00\n", FormatError, "not YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, error: type[ForetraceError], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_schedule(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read .*none\.csv"):
        load_schedule(tmp_path / "none.csv", 2)
    with pytest.raises(FormatError, match=r"ends in \.csv, \.yaml, \.yml"):
        load_schedule("./mine.txt", 2)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not UTF-8"):
        load_schedule(tmp_path / "binary.csv", 2)
    with pytest.raises(ForetraceError, match=r"expected a name that ends in \.csv"):
        write_schedule(load_schedule("gpipe", 2), tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 1, 4), "^pp: .* is for 2 ranks, got pp=3; nearest valid: pp=2"),
        ((2, 2, 4), "^interleave: .* has 2 stages on 2 ranks, got interleave=2; nearest valid: interleave=1"),
        ((2, 1, 8), "^the number of micro-batches: .* is for 4, got 8; nearest valid: 4"),
    ],
)
def test_a_file_for_another_plan(tmp_path: Path, arguments: tuple[int, int, int], message: str) -> None:
    write_schedule(load_schedule("1f1b", 2, 1, 4), path := tmp_path / "mine.csv")
    with pytest.raises(ScheduleError, match=message):
        load_schedule(path, *arguments)


def test_stages_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + "0,0,0,0,F\n1,0,0,1,F\n1,1,0,2,F\n1,2,0,2,B\n1,3,0,1,B\n0,1,0,0,B\n")
    assert read_schedule(path).stages == 3
    with pytest.raises(ScheduleError, match="has 3 stages, expected a multiple of pp=2; nearest valid: 4 stages"):
        load_schedule(path, 2, 1, 1)
