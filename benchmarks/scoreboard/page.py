"""docs/models.md from what has been measured so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import results
from .jobs import GIANTS, Job

Result = dict[str, Any]
Row = tuple[Job, Result]
Rows = list[Row]

LLM = ("decoder", "vision-language", "encoder-decoder", "encoder")
GOALS = {"forward": 98, "decode": 98, "train": 95}
COSTS = {"forward": 3, "decode": 3, "train": 7}
PEAK_BYTES = 600_000_000
FOLDED = 300

INTRO = """
What is captured, from one command: `make capture-matrix` (no weights, no accelerator).

- **FLOPs** are matrix work. The counter is torch's `FlopCounterMode` on the model as transformers has it, without our
  plug-ins. Compared module by module, to the last FLOP; modules whose experts or scan are one operator of ours are left
  out on both sides, because transformers runs something else there (every expert on every token, a scan as matmuls) or
  the counter has no formula. So is what a flash kernel's backward computes again, Q·Kᵀ: the unpatched model keeps it;
  and grouped convolutions in training, whose backward torch's formula counts as that of dense ones.
- **exact**: every size of every result is what a recording has at a point where the model was never captured (batch 4
  or 5, seq 77, context 203, target 71, so far as the model allows).
- **torch.export**: the same model at full depth exported (non-strict, static sizes) and read by `graph_from_fx`.
- **types**: `AutoModelForCausalLM` of each type's default configuration, phase forward, with no code of
  ours per model, in bfloat16 where that names no dtype (grouped matmuls know no other).
""".strip()


@dataclass(frozen=True)
class Goal:
    """One row of the summary."""

    what: str
    reached: str
    least: str
    met: bool


def page_of(jobs: Sequence[Job]) -> str:
    """The whole page."""
    models, types, export, cost = _groups(jobs)
    parts = [
        "# Models", INTRO, _state(jobs, [*models, *types, *export, *cost]), _summary(jobs), "## Cost", _costs(cost),
        "## Models", _table(models), "## Causal language models of transformers", _types(types),
        "## torch.export", _export(export), "## Outside", _outside(models, types),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _groups(jobs: Sequence[Job]) -> tuple[Rows, Rows, Rows, Rows]:
    rows = [(j, r) for j in jobs if (r := results.load(j)) is not None]
    models, types, export, cost = (
        [(j, r) for j, r in rows if j.group == group] for group in ("models", "types", "export", "cost")
    )
    return models, types, export, cost


def _state(jobs: Sequence[Job], rows: Rows) -> str:
    versions = sorted({f"torch {m['torch']}, transformers {m['transformers']}" for _, r in rows if (m := _made(r))})
    stale = sum(results.is_stale(r) for _, r in rows)
    text = f"{len(rows)} of {len(jobs)} measured"
    if rows:
        text += f"; {'; '.join(versions)}"
    return text + (f"; {stale} of them by older code of ours." if stale else ".")


def _made(result: Result) -> Result:
    return dict(result.get("made_by") or {})


def _percent(good: int, of: int) -> str:
    return f"{good} of {of} ({int(1000 * good / of) / 10:g} %)" if of else "–"


def _captured(rows: Rows) -> Rows:
    return [(j, r) for j, r in rows if "error" not in r]


def _equal(r: Result) -> bool:
    return bool(r["counted"] == r["seen"])


def _same(r: Result) -> bool:
    return bool(r["their_parameters"] == r["parameters"] and r["their_seen"] == r["seen"])


def goals_of(jobs: Sequence[Job]) -> list[Goal]:
    """What was to be reached, and what is."""
    models, types, export, cost = _groups(jobs)
    found = []
    for phase, least in GOALS.items():
        of = [(j, r) for j, r in models if j.phase == phase]
        found.append(_share(f"{phase} captured, of the 64 models", of, lambda r: "error" not in r, least))
    found.append(_share("causal-LM types captured", types, lambda r: "error" not in r, 90))
    made = [(j, r) for j, r in types if "cannot be built" not in r.get("error", "")]
    found.append(_share("the same, of those that transformers itself can build", made, lambda r: "error" not in r, 90))
    for what, rows in (("models", models), ("types", types)):
        counted = [(j, r) for j, r in _captured(rows) if r.get("counted")]
        checked = [(j, r) for j, r in _captured(rows) if "exact" in r]
        found.append(_share(f"{what}: FLOPs equal to the counter's, where it counts", counted, _equal, 100))
        found.append(_share(f"{what}: every size exact at a held-out point", checked, lambda r: r["exact"], 97))
    named = [(j, r) for j, r in _captured(models) if j.phase == "forward" and r["published"]]
    exported = [(j, r) for j, r in export if "their_seen" in r]
    llm = [(j, r) for j, r in _captured(models) if r["family"] in LLM]
    plain = [(j, r) for j, r in llm if j.phase != "train"]
    found += [
        _share("parameters as published, where known", named, lambda r: r["parameters"] == r["published"], 100),
        _share("torch.export and recorder equal, of what torch.export takes", exported, _same, 95),
        _share(f"forward or decode of a language model in {FOLDED} ops, folded", plain, _is_short, 100),
    ]
    for phase, most in COSTS.items():
        of = [r for j, r in _captured(cost) if j.phase == phase]
        if of:
            seconds, peak = max(r["seconds"] for r in of), max(r["peak_bytes"] for r in of)
            said = f"{seconds:.1f} CPU-s, {peak / 1e9:.2f} GB"
            met = seconds <= most and peak <= PEAK_BYTES
            found.append(Goal(f"{' and '.join(GIANTS)}, {phase}: at most", said, f"{most} CPU-s, 0.6 GB", met))
    return found


def _share(what: str, rows: Rows, test: Callable[[Result], object], least: float) -> Goal:
    good = sum(bool(test(r)) for _, r in rows)
    return Goal(what, _percent(good, len(rows)), f"{least} %", 100 * good >= least * len(rows))


def _is_short(r: Result) -> bool:
    return bool(r["folded"] <= FOLDED)


def _summary(jobs: Sequence[Job]) -> str:
    lines = ["| what | reached | goal | |", "|---|---|---|---|"]
    lines += [f"| {g.what} | {g.reached} | {g.least} | {'' if g.met else '**missed**'} |" for g in goals_of(jobs)]
    return "\n".join(lines)


def _costs(rows: Rows) -> str:
    lines = [
        "CPU seconds of `capture_graph` after imports; the peak is of the whole process, imports included.", "",
        "| model | phase | CPU-s | peak | ops | folded | parameters |", "|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for j, r in _captured(rows):
        lines.append(
            f"| {j.name} | {j.phase} | {r['seconds']:.2f} | {r['peak_bytes'] / 1e9:.2f} GB | {r['ops']:,} "
            f"| {r['folded']:,} | {r['parameters']:,} |"
        )
    return "\n".join(lines)


def _table(rows: Rows) -> str:
    lines = [
        "*left out*: the share of the counter's FLOPs in modules that are not compared.", "",
        "| model | phase | rung | ops | folded | parameters | FLOPs | = counter | left out | exact | open | CPU-s |",
        "|---|---|---|--:|--:|--:|--:|---|--:|---|---|--:|",
    ]  # fmt: skip
    for j, r in _captured(rows):
        lines.append(
            f"| {j.name} | {j.phase} | {r['rung']} | {r['ops']:,} | {r['folded']:,} | {r['parameters']:,} "
            f"| {r['flops']:.4g} | {_verdict(_equal(r) if r.get('counted') else None)} | {_left_out(r)} "
            f"| {_verdict(r.get('exact'))} | {', '.join(r['open']) or 'none'} | {r['seconds']:.1f} |"
        )
    return "\n".join(lines)


def _verdict(value: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "–"}[value]


def _left_out(r: Result) -> str:
    whole = r.get("counted_in_all")
    return f"{1 - r['counted'] / whole:.0%}" if whole and r["counted"] != whole else ""


def _types(rows: Rows) -> str:
    by_rung: dict[str, list[str]] = {}
    for j, r in _captured(rows):
        by_rung.setdefault(r["rung"], []).append(j.name)
    lines = [f"Captured by rung (capture/rungs.py); {len(rows)} types.", ""]
    lines += [f"- **{rung}** ({len(names)}): {', '.join(names)}" for rung, names in by_rung.items()]
    return "\n".join(lines)


def _export(rows: Rows) -> str:
    equal = [j.name for j, r in rows if "their_seen" in r and _same(r)]
    lines = [f"Equal parameters and FLOPs ({len(equal)}): {', '.join(equal) or '–'}.", ""]
    differ = [(j, r) for j, r in rows if "their_seen" in r and not _same(r)]
    lines += [
        f"- {j.name}: recorder {r['parameters']:,} parameters, {r['seen']:,} FLOPs; torch.export "
        f"{r['their_parameters']:,}, {r['their_seen']:,}"
        for j, r in differ
    ]
    lines += [f"- {j.name}: {_why(r)}" for j, r in rows if "their_seen" not in r]
    return "\n".join(lines)


def _why(r: Result) -> str:
    text = str(r.get("error") or r.get("stopped") or r.get("refused"))
    return " ".join(text.split()).replace("<", "‹").replace(">", "›")  # no HTML


def _outside(models: Rows, types: Rows) -> str:
    lines = []
    for j, r in [*models, *types]:
        name = f"{j.name}, {j.phase}" if j.group == "models" else f"type {j.name}"
        if "error" in r:
            lines.append(f"- {name}: not captured: {_why(r)}")
            continue
        if "stopped" in r:
            lines.append(f"- {name}: not checked: {_why(r)}")
        if r.get("counted") and not _equal(r):
            lines.append(f"- {name}: {r['seen']:,} FLOPs, the counter {r['counted']:,}")
        if "uncounted" in r:
            lines.append(f"- {name}: the counter's run failed without our plug-ins: {r['uncounted']}")
        if r.get("exact") is False:
            lines.append(f"- {name}: sizes differ at {_at(r)}: {r['differs']}")
        if "batch" in r["fixed"]:
            lines.append(f"- {name}: one shape only in {', '.join(r['fixed'])}")
        if j.group == "models" and j.phase != "train" and r["family"] in LLM and r["folded"] > FOLDED:
            lines.append(f"- {name}: {r['folded']} ops folded")
    return "\n".join(lines) or "Nothing."


def _at(r: Result) -> str:
    return " ".join(f"{n}={v}" for n, v in r["at"].items())
