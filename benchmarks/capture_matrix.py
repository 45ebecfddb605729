"""The scoreboard: what is captured, and how well it stands its checks → docs/models.md (`make capture-matrix`).

Results are kept in .capture-matrix/ (see `scoreboard.results`), so that a run that was stopped goes on where it was;
what failed, or was measured by other code, is measured again with `--again`. `--only PATTERN` and `--slice I/N` run a
part, `--report` only writes the page; with `--check` the exit code is 1 where a goal is missed or a job not measured.
"""

import argparse
import re
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scoreboard.jobs import Job, all_jobs
from scoreboard.page import goals_of, page_of
from scoreboard.results import ROOT, failed, is_stale, load, save
from scoreboard.workers import run_jobs, serve

PAGE = ROOT / "docs" / "models.md"
AGAIN = ("nothing", "failed", "stale", "all")


def wanted(jobs: list[Job], only: str, part: str, again: str) -> list[Job]:
    """Of *jobs*, those that *only* and *part* name and that have no result, or one to be measured *again*."""
    index, count = map(int, part.split("/"))
    chosen = [j for i, j in enumerate(jobs) if re.search(only, j.key) and i % count == index]

    def is_due(job: Job) -> bool:
        result = load(job)
        if result is None or again == "all":
            return True
        return again in ("failed", "stale") and (failed(result) or (again == "stale" and is_stale(result)))

    return [j for j in chosen if is_due(j)]


def measure(jobs: list[Job], count: int, memory_gb: float) -> None:
    """Run *jobs* with a progress bar on stderr, keeping each result as it comes."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(jobs))

        def done(job: Job, result: dict[str, Any]) -> None:
            save(job, result)
            if failed(result):
                console.print(f"{job.key}: {result.get('error') or result['stopped']}", markup=False)
            elif not console.is_terminal:  # a bar is drawn only there
                console.print(f"{job.key}: {result['wall_s']} s", markup=False)
            progress.advance(bar)

        run_jobs(jobs, count, memory_gb, lambda job: progress.update(bar, description=job.key), done)


def main() -> None:
    """Run what was asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression of GROUP/MODEL/PHASE, e.g. models/.*/train")
    parser.add_argument("--slice", default="0/1", help="I/N: every N-th job from the I-th")
    parser.add_argument("--again", choices=AGAIN, default="nothing", help="which results to measure again")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--memory-gb", type=float, default=8, help="address space of one process")
    parser.add_argument("--report", action="store_true", help="write the page from what there is")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(given.memory_gb)
        return
    jobs = all_jobs()
    due = [] if given.report else wanted(jobs, given.only, given.slice, given.again)
    for alone in (True, False):  # costs with nothing beside them
        if part := [j for j in due if j.alone is alone]:
            measure(part, 1 if alone else given.jobs, given.memory_gb)
    PAGE.write_text(page_of(jobs), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written", file=sys.stderr)
    if given.check:
        missed = [f"{g.what}: {g.reached}, to reach {g.least}" for g in goals_of(jobs) if not g.met]
        missed += [f"not measured: {j.key}" for j in jobs if load(j) is None]
        sys.exit("\n".join(missed) or 0)


if __name__ == "__main__":
    main()
