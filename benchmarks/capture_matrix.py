"""The scoreboard: a fixed list of 64 models × forward, decode, train → docs/models.md (`make capture-matrix`).

Each model is a process of its own with a time limit; its figures are added to .capture-matrix/NAME.json, so that a
run that was stopped goes on where it was. `--only PATTERN` and `--slice I/N` run a part, `--report` only writes.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".capture-matrix"
PAGE = ROOT / "docs" / "models.md"
LIMIT_S = 600

MODELS = """
gpt2 gpt2-xl Llama-2-7b-hf Meta-Llama-3-8B Llama-3.1-8B Llama-3.1-405B Llama-3.2-1B SmolLM2-135M SmolLM3-3B Yi-34B
Mistral-7B-v0.1 Mistral-Nemo-Base-2407 Qwen2-0.5B Qwen2.5-7B Qwen3-8B gemma-2b gemma-2-9b gemma-3-1b-pt phi-2
Phi-3-mini-4k-instruct phi-4 OLMo-2-1124-7B falcon-7b falcon-40b mpt-7b bloom-560m opt-1.3b pythia-1.4b gpt-j-6b
gpt-neo-1.3B starcoder2-3b c4ai-command-r-v01 granite-3.0-8b-base stablelm-2-1_6b
Mixtral-8x7B-v0.1 Qwen3-30B-A3B Qwen3-Next-80B-A3B-Instruct DeepSeek-V2-Lite DeepSeek-V3 gpt-oss-20b OLMoE-1B-7B-0924
dbrx-base Llama-4-Scout-17B-16E mamba-2.8b-hf Mamba-Codestral-7B-v0.1 Jamba-v0.1 rwkv-4-169m-pile
bert-base-uncased roberta-base deberta-v3-base ModernBERT-base t5-base bart-base
vit-base-patch16-224 swin-tiny-patch4-window7-224 convnext-tiny-224 resnet-50 dinov2-base clip-vit-base-patch32
whisper-small wav2vec2-base-960h llava-1.5-7b-hf Qwen2-VL-2B-Instruct gemma-3-4b-it
""".split()
FAST = ("gpt2", "SmolLM2-135M", "t5-base", "vit-base-patch16-224")
"""The slice that the tests run."""


def measure(name: str, phase: str) -> dict[str, object]:
    """One capture and its checks, in this process."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from foretrace.capture import capture_graph, catalogue, resolve_model
    from foretrace.capture.recorder import Recorder
    from foretrace.ir import MATRIX_KINDS, OpKind
    from foretrace.ir.blocks import folded_size

    model = resolve_model(name)
    start = time.process_time()
    graph = capture_graph(model, phase=phase)
    seconds = time.process_time() - start
    at = held_out(graph)
    fixed = {n.removeprefix("fixed."): int(v) for n, v in graph.metadata.items() if n.startswith("fixed.")}
    seen = graph.flops(at, MATRIX_KINDS - {OpKind.GROUPED_MATMUL})
    found: dict[str, object] = {
        "rung": graph.metadata.get("rung", ""), "ops": len(graph.ops), "folded": folded_size(graph),
        "parameters": graph.parameter_count, "published": catalogue()[model.name]["parameters"],
        "flops": graph.flops(at), "seen": seen, "seconds": seconds, "open": list(graph.symbols),
        "fixed": sorted(set(fixed) - set(model.family.pinned)), "family": model.family.name, "at": at | fixed,
    }  # fmt: skip
    if phase != "train":
        root, step = step_of(model, phase, graph.metadata["attention"], at | fixed)
        found["exact"] = exact(graph, at, root, step)
        if graph.metadata["attention"] not in ("sdpa", "eager"):  # ours: the counter sees the model's own
            root, step = step_of(model, phase, "eager", at | fixed)
        try:
            with torch.no_grad(), Recorder(), FlopCounterMode(display=False) as counter:
                step.run()
            found["counted"] = int(counter.get_total_flops())
        except Exception as e:  # without our plug-ins a model may not run on meta: nothing to compare with
            found["uncounted"] = f"{type(e).__name__}: {e}"[:200]
    return found


def step_of(model, phase, attention, point):  # type: ignore[no-untyped-def]
    """The model built anew with *attention*, and its step at *point*."""
    import torch

    from foretrace.capture.phases import make_step

    root = model.build(None, attention)
    with torch.no_grad():
        return root, make_step(root, model.config, phase, point, "meta", model.family)


def held_out(graph):  # type: ignore[no-untyped-def]
    """Sizes at which *graph* was never captured, inside what it says it holds for."""
    sizes = {"batch": 4, "seq": 77, "context": 203, "target": 71, "frames": 91}
    at = {}
    for n, s in graph.symbols.items():
        at[n] = max(s.minimum + 3 if s.minimum > 2 else s.minimum, sizes.get(n, 4))
        if s.maximum is not None:
            at[n] = min(at[n], s.maximum - 1)
    return graph.bind(at)


def exact(graph, at, root, step):  # type: ignore[no-untyped-def]
    """Whether every size of every result is what a recording at the held-out point has."""
    from foretrace.capture.aten import kind_of
    from foretrace.capture.recorder import record
    from foretrace.ir import OpKind, evaluate_dim

    recording = record(root, step.run, step.inputs)
    seen = [
        recording.tensors[t].shape
        for op in recording.ops
        if kind_of(op.function) is not OpKind.VIEW
        for t in op.outputs
    ]
    made = [t for op in graph.ops if op.kind is not OpKind.VIEW for t in op.outputs]
    return seen == [tuple(evaluate_dim(d, at) for d in graph.tensors[t].shape) for t in made]


def phases_of(name: str) -> list[str]:
    """What is captured of a model: all of forward and train, decode where it keeps a cache."""
    from foretrace.capture import resolve_model

    return [p for p in ("forward", "decode", "train") if p in resolve_model(name).family.phases]


def run(name: str, phases: list[str]) -> None:
    """All phases of one model, each result written as soon as it is there."""
    file = RESULTS / f"{name}.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for phase in phases_of(name):
        if phase not in phases or "error" not in results.get(phase, {"error": ""}):
            continue
        results[phase] = {"error": f"took longer than {LIMIT_S} s"}
        file.write_text(json.dumps(results, indent=1))
        try:
            results[phase] = measure(name, phase)
        except Exception as e:
            results[phase] = {"error": f"{type(e).__name__}: {e}"[:400]}
        file.write_text(json.dumps(results, indent=1))


def percent(good: int, of: int) -> str:
    return f"{good} of {of} ({100 * good / of:.0f} %)" if of else "–"


def report() -> str:
    """The page, from what has been measured so far."""
    results = {n: json.loads(f.read_text()) for n in MODELS if (f := RESULTS / f"{n}.json").exists()}
    rows = [(n, p, r) for n, phases in results.items() for p, r in phases.items()]
    good = [(n, p, r) for n, p, r in rows if "error" not in r]
    counted = [r for _, p, r in good if r.get("counted")]
    equal = [r for r in counted if same_flops(r)]
    lines = [
        "# Models", "",
        "What is captured, from one command: `make capture-matrix` (no weights, no accelerator). Sizes of the check "
        "are in the column *at*: never captured there. FLOPs are matrix work; *counter* is torch's "
        "`FlopCounterMode` on the model as it is, over our FLOPs without grouped matmuls and "
        "scans, which it does not count. Where it counts more, transformers runs more: every expert on "
        "every token (dbrx, Llama 4), or a scan unrolled into matmuls (Mamba, Qwen3-Next).", "",
        f"{len(results)} of {len(MODELS)} models measured.", "",
        "| what | reached | goal |", "|---|---|---|",
    ]  # fmt: skip
    for phase, goal in (("forward", "98 %"), ("decode", "98 %"), ("train", "95 %")):
        of = [r for _, p, r in rows if p == phase]
        lines.append(f"| {phase} captured | {percent(sum('error' not in r for r in of), len(of))} | {goal} |")
    checked = [r for _, _, r in good if "exact" in r]
    named = [r for _, p, r in good if p == "forward" and r["published"]]
    right = sum(r["parameters"] == r["published"] for r in named)
    folded = max((r["folded"] for _, p, r in good if p != "train"), default=0)
    lines += [
        f"| FLOPs equal to the counter's, where it counts | {percent(len(equal), len(counted))} | 100 % |",
        f"| every size exact at a held-out point | {percent(sum(r['exact'] for r in checked), len(checked))} | 97 % |",
        f"| parameters as published, where known | {percent(right, len(named))} | – |",
        f"| largest folded forward or decode | {folded} ops | 300 |",
        "", "| model | phase | rung | ops | folded | parameters | FLOPs | counter | exact | open | at | CPU-s |",
        "|---|---|---|--:|--:|--:|--:|--:|---|---|---|--:|",
    ]  # fmt: skip
    for name, phase, r in good:
        exact_said = {True: "yes", False: "**no**", None: "–"}[r.get("exact")]
        ratio = f"{r['counted'] / r['seen']:.4f}×" if r.get("counted") and r["seen"] else "–"
        at = " ".join(f"{k}={v}" for k, v in r["at"].items())
        lines.append(
            f"| {name} | {phase} | {r['rung']} | {r['ops']:,} | {r['folded']:,} | {r['parameters']:,} "
            f"| {r['flops']:.4g} | {ratio} | {exact_said} | {', '.join(r['open']) or 'none'} | {at} "
            f"| {r['seconds']:.2f} |"
        )
    outside = [(n, p, r) for n, p, r in rows if "error" in r]
    differ = [(n, p, r) for n, p, r in good if r.get("counted") and not same_flops(r)]
    lines += ["", "## Outside", ""]
    lines += [f"- {n}, {p}: {' '.join(r['error'].split())}" for n, p, r in outside]
    lines += [
        f"- {n}, {p}: {r['seen']:,} FLOPs without grouped matmuls, the counter {r['counted']:,}" for n, p, r in differ
    ]
    lines += [f"- {n}, {p}: one shape only in {', '.join(r['fixed'])}" for n, p, r in good if "batch" in r["fixed"]]
    return "\n".join(lines if outside or differ else [*lines, "Nothing."]) + "\n"


def same_flops(r: dict) -> bool:  # type: ignore[type-arg]
    return bool(abs(r["counted"] - r["seen"]) <= 1e-3 * r["seen"])


def main() -> None:
    """Run the models that were asked for, one process each, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--slice", default="0/1", help="I/N: every N-th model from the I-th")
    parser.add_argument("--report", action="store_true", help="write the page from what there is")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--phases", default="forward,decode,train")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if given.one:
        return run(given.one, given.phases.split(","))
    index, count = map(int, given.slice.split("/"))
    names = [n for n in MODELS[index::count] if re.search(given.only, n)] if not given.report else []
    for i, name in enumerate(names):
        if given.fresh:
            (RESULTS / f"{name}.json").unlink(missing_ok=True)
        bar = "█" * (20 * i // len(names))
        print(f"\r{bar:░<20} {i}/{len(names)} {name:40}", end="", file=sys.stderr, flush=True)
        one = [sys.executable, __file__, "--one", name, "--phases", given.phases]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(one, timeout=LIMIT_S, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"\r{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        PAGE.write_text(report(), encoding="utf-8")
    PAGE.write_text(report(), encoding="utf-8")
    print(f"\r{PAGE.relative_to(ROOT)} written{'':60}", file=sys.stderr)
    return None


if __name__ == "__main__":
    main()
