"""Jobs in parallel, each worker a process of its own: what hangs is stopped, what takes too much memory fails alone.

A worker reads the key of a job from its stdin and answers with lines of JSON on its stdout: what is known so far, then
the result. It is started again after `JOBS_EACH` jobs, and after any that was stopped.
"""

import json
import os
import queue
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .jobs import GROUPS, Job, job_of
from .results import made_by

SCRIPT = Path(__file__).resolve().parents[1] / "capture_matrix.py"
JOBS_EACH = 20
START_S = 120
Report = Callable[[Job, dict[str, Any]], None]


def run_jobs(jobs: Sequence[Job], count: int, memory_gb: float, started: Callable[[Job], None], done: Report) -> None:
    """Run *jobs* on *count* workers, *done* with each result; one at a time calls it."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker(memory_gb)
        try:
            while True:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                with lock:
                    started(job)
                if job.alone or worker.answered >= JOBS_EACH:
                    worker.stop()
                start = time.monotonic()
                result = worker.run(job)
                result["wall_s"] = round(time.monotonic() - start, 1)
                if job.alone:
                    worker.stop()
                with lock:
                    done(job, result)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Worker:
    """One process, started when first needed."""

    def __init__(self, memory_gb: float) -> None:
        self.memory_gb = memory_gb
        self.answered = 0
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, job: Job) -> dict[str, Any]:
        """The result of *job*; says so where it took too long or its process ended."""
        if self.process is None:
            command = [sys.executable, str(SCRIPT), "--worker", "--memory-gb", str(self.memory_gb)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process, limit_s = self.process, GROUPS[job.group]
        assert process.stdin is not None
        try:
            process.stdin.write(f"{job.key}\n".encode())
            process.stdin.flush()
        except OSError:
            pass  # it ended: its answer says so
        known: dict[str, Any] = {}
        for kind, content in _answers(process, time.monotonic() + limit_s + (0 if self.answered else START_S)):
            if kind == "result":
                self.answered += 1
                return content
            known = content
        why = f"took longer than {limit_s} s" if process.poll() is None else f"its process ended: {_ended(process)}"
        self.stop()
        return known | {"stopped": why} if known else {"error": why}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        self.process, self.answered = None, 0


def _ended(process: "subprocess.Popen[bytes]") -> str:
    code = process.wait()
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _answers(process: "subprocess.Popen[bytes]", end: float):  # type: ignore[no-untyped-def]
    """(kind, content) of each line that *process* writes until *end*."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                return
            read = os.read(descriptor, 1 << 16)
            if not read:
                process.wait()
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                yield json.loads(line)


def serve(memory_gb: float) -> None:
    """What a worker process does: a job a line of stdin, until that ends."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 1e9),) * 2)
    with os.fdopen(os.dup(1), "w") as out:  # whatever a library prints goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

        def say(kind: str, content: dict[str, Any]) -> None:
            out.write(json.dumps([kind, content]) + "\n")
            out.flush()

        stamp = {"made_by": made_by()}  # now: the code may change while this runs
        for line in sys.stdin:
            result = _attempt(job_of(line.strip()), lambda known: say("so far", known | stamp), memory_gb)
            say("result", result | stamp)


def _attempt(job: Job, keep: Callable[[dict[str, Any]], None], memory_gb: float) -> dict[str, Any]:
    known: dict[str, Any] = {}

    def remember(found: dict[str, Any]) -> None:
        known.clear()
        known.update(found)
        keep(found)

    try:
        return dict(_run(job, remember))
    except MemoryError:
        why = f"needs more than {memory_gb:g} GB"
    except Exception as e:  # a model's own code, or ours: the page says which
        why = f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]
    return known | {"stopped": why} if known else {"error": why}


def _run(job: Job, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    if job.group == "cost":
        from .cost_job import cost_job

        return cost_job(job, keep)
    if job.group == "export":
        from .export_job import export_job

        return export_job(job, keep)
    from .capture_job import capture_job

    return capture_job(job, keep)
