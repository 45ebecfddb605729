"""Record measured traces and operator tables of this machine in one command and a fixed time.

    python benchmarks/record.py --device cpu|cuda -o traces/recorded/NAME [--minutes 12] [--quick]

Models have random weights of published sizes, so nothing is downloaded. Each `.trace` and each `.ops.parquet` is
written as it is done; `recorded.yaml` lists them (and what failed, with its reason), `system.yaml` describes the
machine. A run that is cut short keeps what it has. ``python benchmarks/scoreboard/recorded.py`` scores the folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import yaml

START = time.monotonic()  # before the slow imports

from recording.items import Item, groups  # noqa: E402
from recording.machine import SYSTEM, describe  # noqa: E402
from recording.worker import run  # noqa: E402

INDEX = "recorded.yaml"
HEAD = "# Measured traces and operator tables, written by benchmarks/record.py; times in seconds.\n"
REPEATS = 5
KINDS = {"step": "steps", "operators": "operators", "failed": "failed"}


def main() -> None:
    """Record, model by model."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder of its own, traces/recorded/NAME")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether all works")
    parser.add_argument("--only", default="", help="steps whose name holds this; the others of an earlier run stay")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    end = START + 60 * arguments.minutes
    if arguments.worker:
        serve(arguments.device, arguments.output)
        return
    record(arguments.device, arguments.output, end, arguments.quick, arguments.only)


def record(device: str, out: Path, end: float, quick: bool, only: str = "") -> dict[str, Any]:
    """Measure everything that there is time for until the monotonic time *end*; the index as written."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = [(share, [i for i in items if only.lower() in i.name]) for share, items in groups(device, quick)]
    chosen = [(share, items) for share, items in chosen if items]
    index: dict[str, Any] = {"system": SYSTEM, "device": device, "recorded": str(date.today()), **_software()}
    index |= _kept(out, {item.name for _, items in chosen for item in items} if only else None)
    if not (out / SYSTEM).is_file() or not only:
        with tempfile.TemporaryDirectory(prefix="foretrace-record-") as folder:
            (out / SYSTEM).write_text(describe(device, out.resolve().name, Path(folder)), encoding="utf-8")
    _write(out, index)
    for at, (share, items) in enumerate(chosen):
        left = end - time.monotonic()
        seconds = left * share / sum(share for share, _ in chosen[at:])
        print(f"{items[0].model}: {len(items)} steps in {seconds:.0f} s", flush=True)
        _one_model(items, device, out, seconds, left, index)
    index["seconds"] = round(time.monotonic() - START)
    _write(out, index)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    counts = ", ".join(f"{len(index[name])} {name}" for name in KINDS.values())
    print(f"{out}: {counts}, {size / 1e6:.1f} MB, {index['seconds']} s")
    return index


def _kept(out: Path, again: set[str] | None) -> dict[str, Any]:
    """The rows of an earlier run in *out* that stay; files of items measured *again* (None: all) are removed."""
    if not (out / INDEX).is_file():
        if any(out.iterdir()):
            sys.exit(f"{out}: not empty, and no recording: name a folder of its own")
        return {name: [] for name in KINDS.values()}
    earlier = yaml.safe_load((out / INDEX).read_text(encoding="utf-8"))
    kept: dict[str, Any] = {name: [] for name in KINDS.values()}
    for name, rows in kept.items():
        for row in earlier[name]:
            if again is not None and Item.of_row(row).name not in again:
                rows.append(row)
            elif "file" in row:
                (out / row["file"]).unlink(missing_ok=True)
    return kept


def _one_model(items: list[Item], device: str, out: Path, seconds: float, left: float, index: dict[str, Any]) -> None:
    """Its items in a process of their own, ended at the latest when *left* s are over."""
    asked = {"items": [item.as_row() for item in items], "seconds": seconds}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--device", device, "-o", str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    watch = threading.Timer(max(left, 1.0), process.kill)
    watch.start()
    try:
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        done = 0
        for line in process.stdout:
            kind, row = json.loads(line)
            rows = index[KINDS[kind]]
            rows[:] = [old for old in rows if Item.of_row(old).name != Item.of_row(row).name] + [row]
            done += kind == "step" or row.get("what") == "step"
            _write(out, index)
            print(f"  {_shown(kind, row)}", flush=True)
        if process.wait():
            reason = f"its process ended with {process.returncode}: out of time or memory"
            index["failed"] += [item.as_row() | {"what": "step", "reason": reason} for item in items[done:]]
    finally:
        watch.cancel()
        process.kill()
        process.wait()


def serve(device: str, out: Path) -> None:
    """What a worker does: the items on its stdin, a line of JSON for each thing done."""
    asked = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as answers:  # what a library prints goes to stderr

        def say(kind: str, row: dict[str, Any]) -> None:
            answers.write(json.dumps([kind, row]) + "\n")
            answers.flush()

        os.dup2(2, 1)
        run([Item.of_row(row) for row in asked["items"]], device, out, asked["seconds"], REPEATS, say)


def _shown(kind: str, row: dict[str, Any]) -> str:
    name = Item.of_row(row).name
    if kind == "step":
        return f"{name}: {row['step_s'] * 1e3:.3f} ms"
    if kind == "operators":
        return f"{name}: {row['rows']} operators, {sum(row['not_timed'].values())} not timed"
    return f"{name}: {row['what']} failed: {row['reason']}"


def _software() -> dict[str, Any]:
    from importlib.metadata import version

    return {"torch": version("torch"), "transformers": version("transformers")}


def _write(out: Path, index: dict[str, Any]) -> None:
    text = HEAD + yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=180)
    part = out / f"{INDEX}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(out / INDEX)


if __name__ == "__main__":
    main()
