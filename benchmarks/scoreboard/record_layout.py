"""Recordings in another layout, as `benchmarks/record.py` writes them.

The other layout, from a script that needs torch and transformers alone: `env.json` (the device and its rates),
`steps.jsonl` (a line for each step), `traces_N.tar` (a gzipped Kineto trace of each, named after the step) and
`ops_gemm.csv`, `ops_attention.csv`, `ops_elementwise.csv`. Its prefill gives the logits of all tokens, as our forward.
"""

import csv
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from recording.items import Item
from recording.machine import HEAD, SYSTEM

import foretrace
from foretrace.ir import ForetraceError, FormatError

NAMES: Final = {
    "llama-3.2-1b": "Llama-3.2-1B", "llama-3.1-8b": "Llama-3.1-8B", "qwen3-8b": "Qwen3-8B",
    "bert-large": "bert-large-uncased", "vit-large": "vit-large-patch16-224",
}  # fmt: skip
OPERATORS: Final = {
    "cast_fp32": ("aten._to_copy.default", "copy"),
    "sum_rows": ("aten.sum.dim_IntList", "reduction"),
    "transpose_copy": ("aten.clone.default", "copy"),
    "embedding": ("aten.embedding.default", "embedding"),
}
"""Operators that measured tables have no short name for: the framework's name and its kind."""
OPS: Final = "recorded.ops.parquet"
MOST_BYTES: Final = 1 << 28
"""Of one trace, packed."""


def import_record(place: Path, out: Path) -> Path:
    """The recording in the folder *place* written to *out*. Raises `ForetraceError` for what is no such folder."""
    out.mkdir(parents=True, exist_ok=True)
    env = _json((place / "env.json").read_text(encoding="utf-8"), place / "env.json")
    device = "cpu" if env.get("device") == "cpu" else "cuda"
    (out / SYSTEM).write_text(_system(env, place.resolve().name), encoding="utf-8")
    index: dict[str, Any] = {"system": SYSTEM, "device": device, "steps": [], "operators": [], "failed": []}
    traces = _traces(place, out)
    for line in (place / "steps.jsonl").read_text(encoding="utf-8").splitlines():
        row = _json(line, place / "steps.jsonl")
        item = _item(row)
        file = traces.get(_stem(row))
        if file is None:
            reason = "its trace is in none of the traces_N.tar, or cannot be read"
            index["failed"].append(item.as_row() | {"what": "step", "reason": reason})
            continue
        trace = foretrace.load_trace(out / file)
        foretrace.save_trace(trace.replace(step_s=float(row["median_s"]), source="measured"), out / file)
        index["steps"].append(item.as_row() | {"file": file, "step_s": row["median_s"]})
    if rows := list(_operators(place, device)):
        _write_operators(rows, out / OPS)
        index["operators"].append({"model": "various", "file": OPS, "rows": len(rows)})
    import yaml

    (out / "recorded.yaml").write_text(yaml.safe_dump(index, sort_keys=False), encoding="utf-8")
    return out


def _json(text: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{file}: expected an object, got {type(found).__name__}")
    return found


def _item(row: dict[str, Any]) -> Item:
    phase = "forward" if row["phase"] == "prefill" else row["phase"]
    return Item(
        NAMES.get(row["model"], row["model"]),
        phase,
        row["batch"],
        (row["seq"] or None) if phase != "decode" else None,
        row["context"] or None,
        row["dtype"],
        row["attention"],
        row["execution"],
        "adamw" if phase == "train" else None,
    )


def _stem(row: dict[str, Any]) -> str:
    sizes = (f"b{row['batch']}", f"s{row['seq']}", f"c{row['context']}")
    return "_".join(map(str, (row["model"], row["phase"], *sizes, row["dtype"], row["attention"], row["execution"])))


def _traces(place: Path, out: Path) -> dict[str, str]:
    """Stem → file in *out* of each trace that can be read."""
    found = {}
    for tar in sorted(place.glob("traces_*.tar")):
        with tarfile.open(tar) as members, tempfile.TemporaryDirectory(prefix="foretrace-import-") as folder:
            for member in members:
                name = re.fullmatch(r"([\w.-]+)\.json\.gz", member.name)
                if name is None or not member.isfile() or member.size > MOST_BYTES:
                    continue
                packed = Path(folder) / "step.json.gz"
                packed.write_bytes(members.extractfile(member).read())  # type: ignore[union-attr]
                file = f"{name[1]}.trace"
                try:
                    foretrace.save_trace(foretrace.load_trace(packed), out / file)
                except ForetraceError:
                    continue
                found[name[1]] = file
    return found


def _system(env: dict[str, Any], name: str) -> str:
    import yaml

    said = "measured by the recording script"
    if env["device"] != "cpu":
        from foretrace.hardware import load_system

        system: dict[str, Any] = {"name": name, "accelerator": load_system(env["device"]).accelerator.name}
        if seconds := env.get("launch_host_s"):
            system["host"] = {"dispatch": f"{seconds * 1e6:.3g} us", "sources": {"dispatch": f"{said}: add_ in a loop"}}
    else:
        rates = {dtype: f"{rate / 1e9:.4g} GFLOP/s" for dtype, rate in env["matmul_flop_per_s"].items()}
        system = {
            "name": name,
            "title": "a CPU",
            "kind": "cpu",
            "vendor": "unknown",
            "measured": True,
            "generation": "x86",
            "cores": env["cpus"],
            "clock": "3 GHz",
            "compute": {"matrix": rates, "vector": dict(rates)},
            "memory": {"capacity": "8 GiB", "bandwidth": f"{env['copy_bytes_per_s'] / 1e9:.4g} GB/s"},
            "launch_floor": "0.5 us",
            "sources": {
                **dict.fromkeys(("cores", "compute", "memory.bandwidth"), said),
                **dict.fromkeys(("clock", "memory.capacity", "launch_floor"), "estimate: the recording does not say"),
            },
        }
    return HEAD + yaml.safe_dump(system, sort_keys=False, allow_unicode=True)


def _operators(place: Path, device: str) -> Iterator[dict[str, Any]]:
    common = {
        "gpu": SYSTEM,
        "timing": "cudagraph_median5" if device == "cuda" else "loop_median5",
        "software": "eager",
        "source": "foretrace_operators: another script",
    }
    for table in ("attention", "elementwise", "gemm"):
        file = place / f"ops_{table}.csv"
        if not file.is_file():
            continue
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                yield {"table": table, **{k: _cell(k, v) for k, v in row.items()}, **_named(row), **common}


def _cell(name: str, value: str) -> Any:
    if name == "causal":
        return int(value == "True")
    try:
        return float(value)
    except ValueError:
        return value


def _named(row: dict[str, str]) -> dict[str, Any]:
    """Further cells of an operator that measured tables have no short name for."""
    if row.get("op") not in OPERATORS or "rows" not in row:
        return {}
    name, kind = OPERATORS[row["op"]]
    element = 4.0 if row["dtype"] == "fp32" else 2.0
    elements = float(row["rows"]) * float(row["cols"])
    out = {"cast_fp32": 6.0 - element, "sum_rows": element / float(row["cols"])}.get(row["op"], element)
    indices = 8.0 * float(row["rows"]) if kind == "embedding" else 0.0
    return {
        "op": name,
        "kind": kind,
        "bytes_read": elements * element + indices,
        "bytes_written": elements * out,
        "vector_flops": elements * (kind == "reduction"),
        "special_flops": 0.0,
    }


def _write_operators(rows: list[dict[str, Any]], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), file)
