"""Diffs of other people's traces: a run on an A100 against one on a V100, and two ranks of one run."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from foretrace.traces import Trace, diff_traces, load_trace, split_steps
from foretrace.traces.compare import Diff
from foretrace.traces.compare.activity import measure_activity
from foretrace.traces.compare.kernels import PROFILED
from foretrace.traces.steps import marked_windows

TRUTH = os.environ.get("FORETRACE_GROUNDTRUTH", "")
FOLDER = Path(TRUTH).parent / "foreign-traces"
needs_files = pytest.mark.skipif(not TRUTH, reason="needs files of others")
pytestmark = needs_files


@pytest.fixture(scope="module")
def v100() -> Trace:
    return load_trace(FOLDER / "test-v100.json.gz")


@pytest.fixture(scope="module")
def pair(v100: Trace) -> Diff:
    return diff_traces(load_trace(FOLDER / "control-a100.json.gz"), v100)


def test_totals_and_parts_of_the_pair_fit_together(pair: Diff) -> None:
    assert pair.predicted_s < pair.measured_s
    assert pair.matched_share > 0.55
    other = next(s.seconds for s in pair.waterfall if s.label == "other")
    assert abs(other) < 0.02 * pair.measured_s  # what neither operators nor gaps explain
    for activity in pair.activity:
        assert activity.busy_s + activity.idle_s == pytest.approx(activity.span_s)


def test_kinds_of_the_pair_are_operators_and_not_a_profilers(pair: Diff) -> None:
    labels = {row.label for row in pair.by_kind}
    kinds = {row.kind for row in (*pair.by_op, *pair.unmatched_predicted, *pair.unmatched_measured, *pair.causes)}
    assert not (labels | kinds) & PROFILED
    assert {"matmul", "collective", "embedding"} <= labels


def test_a_step_is_as_idle_as_its_window(v100: Trace) -> None:
    """Against a sweep over the device work of all steps; the third step's own kernels alone would leave 50 ms idle."""
    windows = marked_windows(v100)
    assert len(windows) == len(split_steps(v100)) == 6
    work = np.flatnonzero(v100.kind.isin(["kernel", "copy", "memset"]))
    intervals = sorted(zip(v100.start_s[work].tolist(), v100.end_s[work].tolist(), strict=True))
    for window in windows:
        ((begin, end),) = window.values()
        reached, idle = begin, 0.0
        for start, stop in intervals:
            idle += max(min(start, end) - reached, 0.0)
            reached = min(max(reached, stop), end)
        assert measure_activity(v100, [window]).idle_s == pytest.approx(idle + end - reached, abs=1e-9)
    assert measure_activity(v100, windows[2:3]).idle_s < 10e-3


def test_ranks_of_one_run_diff_in_a_folder_and_apart(tmp_path: Path) -> None:
    for rank in (0, 1):
        shutil.copy(FOLDER / f"nccl-rank{rank}.json.gz", tmp_path / f"rank{rank}.json.gz")
    both = load_trace(tmp_path)
    diff = diff_traces(both, both)
    assert diff.alignment.ranks.tolist() == [[0, 0], [1, 1]]
    assert (diff.matched_share, diff.error, diff.mape_ops) == (1.0, 0.0, 0.0)
    assert [s.seconds for s in diff.waterfall[1:-1]] == pytest.approx([0.0] * (len(diff.waterfall) - 2), abs=1e-12)
    lone = [diff_traces(t, t).predicted_s for t in (load_trace(tmp_path / f"rank{r}.json.gz") for r in (0, 1))]
    assert diff.predicted_s == pytest.approx(max(lone))
