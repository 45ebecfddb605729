"""The command line as a user meets it: the JSON contract, exit codes, one clear error for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from foretrace.cli import app

REPLAY_KEYS = {
    "foretrace", "model", "system", "plan", "execution", "time_s", "time_low_s", "time_high_s", "phases_s",
    "breakdown_s", "flops", "mfu", "memory", "ops", "unmodelled_ops", "warnings",
}  # fmt: skip
MEMORY_KEYS = {"peak_bytes", "capacity_bytes", "fits", "by_category_bytes"}
CATEGORIES = {"parameters", "gradients", "optimizer", "activations", "kv_cache", "communication", "workspace"}
INSPECT_KEYS = {
    "name", "phase", "symbols", "parameters", "parameter_bytes", "ops", "ops_by_kind", "flops", "layers",
    "unmodelled_ops",
}  # fmt: skip
DIFF_KEYS = {
    "predicted_s", "measured_s", "error", "matched_share", "mape_ops", "by_module", "by_kind", "unmatched_predicted",
    "unmatched_measured",
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def output(*arguments: object) -> dict[str, object]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def test_replay_json_keeps_its_contract(gpt2_graph_file: Path) -> None:
    value = output("replay", gpt2_graph_file, "--on", "h100-sxm", "--batch", 4, "--json")
    assert set(value) >= REPLAY_KEYS
    assert set(value["phases_s"]) == {"forward", "backward", "optimizer"}
    assert set(value["breakdown_s"]) == {"compute", "exposed_communication", "host", "bubble", "idle"}
    assert set(value["memory"]) >= MEMORY_KEYS
    assert set(value["memory"]["by_category_bytes"]) == CATEGORIES
    assert value["time_s"] == pytest.approx(sum(value["breakdown_s"].values()))
    assert value["time_low_s"] <= value["time_s"] <= value["time_high_s"]


def test_inspect_json_keeps_its_contract(gpt2_graph_file: Path) -> None:
    value = output("inspect", gpt2_graph_file, "--seq", 64, "--json")
    assert set(value) >= INSPECT_KEYS
    assert value["parameters"] == 124_439_808
    assert value["layers"] == 12
    assert value["symbols"]["seq"]["value"] == 64


def test_the_loop_from_files(gpt2_graph_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.pftrace", tmp_path / "b.trace"
    assert run("replay", gpt2_graph_file, "--on", "h100-sxm", "--trace", first).exit_code == 0
    assert run("replay", gpt2_graph_file, "--on", "a100", "--trace", second).exit_code == 0
    value = output("diff", first, second, "--json")
    assert set(value) >= DIFF_KEYS
    assert value["matched_share"] == pytest.approx(1)
    assert value["error"] < 0
    within = run("diff", first, second, "--tolerance", "99%")
    assert within.exit_code == 0
    over = run("diff", first, second, "--tolerance", "0.1%")
    assert over.exit_code == 3
    assert "over the tolerance of 0.1%" in over.stderr


def test_two_replays_are_byte_identical(gpt2_graph_file: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        trace = tmp_path / f"{name}.pftrace"
        command = [sys.executable, "-m", "foretrace", "replay", str(gpt2_graph_file), "--on", "h100-sxm", "--json"]
        done = subprocess.run([*command, "--trace", str(trace)], capture_output=True, check=True)
        runs.append((done.stdout, trace.read_bytes()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("pages", ["replay", "inspect", "show", "list"])
def test_pages_print(pages: str, gpt2_graph_file: Path) -> None:
    commands = {
        "replay": ("replay", gpt2_graph_file, "--on", "h100-sxm:8", "--execution", "compiled"),
        "inspect": ("inspect", gpt2_graph_file),
        "show": ("hardware", "show", "h100-sxm"),
        "list": ("hardware", "list"),
    }
    result = run(*commands[pages])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) > 10


def test_inspect_text_is_the_graph(gpt2_graph_file: Path) -> None:
    from foretrace.ir import load_graph, parse_text

    assert parse_text(run("inspect", gpt2_graph_file, "--text").stdout) == load_graph(gpt2_graph_file)


def test_a_chip_of_ones_own(tmp_path: Path, gpt2_graph_file: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('extends: h100-sxm\nname: mine\nmemory: {bandwidth: "6.7 TB/s"}\n')
    assert run("hardware", "check", file).exit_code == 0
    times = [output("replay", gpt2_graph_file, "--on", s, "--execution", "cudagraph", "--json") for s in ("h100", file)]
    assert times[1]["time_s"] < times[0]["time_s"]
    assert times[1]["system"] == "mine"


BAD = {
    "unknown system": (("replay", "{graph}", "--on", "h10"), "unknown .* 'h10'; nearest: h100"),
    "unknown model": (("capture", "lama", "-o", "{out}"), "unknown model 'lama'; nearest: "),
    "no such graph": (("replay", "no.graph", "--on", "h100"), "no.graph: no such file"),
    "not a graph": (("replay", "{yaml}", "--on", "h100"), "not a Foretrace graph file"),
    "cut graph": (("inspect", "{cut}"), "cut.graph: the graph is (cut off|corrupt)"),
    "zero batch": (("replay", "{graph}", "--on", "h100", "--batch", "0"), "--batch 0: expected a size of at least 1"),
    "negative seq": (("inspect", "{graph}", "--seq=-4"), "--seq -4: expected a size of at least 1"),
    "zero dim": (("inspect", "{graph}", "--dim", "seq=0"), "seq=0"),
    "not a dim": (("inspect", "{graph}", "--dim", "seq"), "expected NAME=VALUE"),
    "unknown dim": (("inspect", "{graph}", "--dim", "sequ=4"), "unknown symbol 'sequ'; nearest: seq"),
    "other phase": (("inspect", "{graph}", "--phase", "decode"), "was captured with phase forward"),
    "other dtype": (("inspect", "{graph}", "--dtype", "bf16"), "was captured with dtype float32"),
    "wrong unit": (("hardware", "check", "{unit}"), r"unit\.yaml:2:\d+: memory\.bandwidth: unit 'TBs' not understood"),
    "bare number": (
        ("hardware", "check", "{bare}"),
        r"bare\.yaml:2:\d+: memory\.bandwidth: expected e\.g\. \"3\.35 TB/s\"",
    ),
    "unknown key": (("hardware", "check", "{key}"), r"key\.yaml:2:\d+: memory\.bandwith: .*bandwidth"),
    "plan": (("replay", "{graph}", "--on", "h100", "--plan", "tp=8"), "plan"),
    "execution": (("replay", "{graph}", "--on", "h100", "--execution", "lazy"), "unknown execution 'lazy'"),
    "costs": (("replay", "{graph}", "--on", "h100", "--costs", "roof"), "unknown .*'roof'; nearest: roofline"),
    "trace format": (("replay", "{graph}", "--on", "h100", "--trace", "x.doc"), r"\.pftrace"),
    "trace folder": (("replay", "{graph}", "--on", "h100", "--trace", "no/x.json"), "cannot write"),
    "not a trace": (("diff", "{yaml}", "{yaml}"), "yaml.yaml: neither a Foretrace trace"),
    "no trace": (("diff", "a.trace", "b.trace"), "a.trace"),
    "capture a file": (("capture", "{yaml}", "-o", "{out}"), "is a file"),
    "onnx": (("capture", "model.onnx", "-o", "{out}"), "model.onnx: cannot be read: No such file"),
    "device": (("measure", "gpt2", "--device", "tpu", "-o", "{out}"), "unknown device 'tpu'"),
    "repeats": (("measure", "gpt2", "--repeats", "0", "-o", "{out}"), "--repeats of at least 1"),
    "too large": (("measure", "Llama-3.1-405B", "-o", "{out}"), "needs .* GB for its weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case: str, tmp_path: Path, gpt2_graph_file: Path) -> None:
    files = {
        "unit": 'extends: h100-sxm\nmemory: {bandwidth: "3.35 TBs"}\n',
        "bare": "extends: h100-sxm\nmemory: {bandwidth: 3.35}\n",
        "key": 'extends: h100-sxm\nmemory: {bandwith: "3 TB/s"}\n',
        "yaml": "extends: h100-sxm\n",
    }
    places = {"graph": gpt2_graph_file, "out": tmp_path / "out", "cut": tmp_path / "cut.graph"}
    places["cut"].write_bytes(gpt2_graph_file.read_bytes()[:-500])
    for name, text in files.items():
        places[name] = tmp_path / f"{name}.yaml"
        places[name].write_text(text)
    arguments, message = BAD[case]
    before = set(tmp_path.iterdir())
    result = run(*(a.format(**places) for a in arguments))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    import re

    assert re.search(message, result.stderr), result.stderr
    assert set(tmp_path.iterdir()) == before, "a partial file was left behind"


@pytest.mark.parametrize(
    "arguments", [("replay",), ("nonsense",), ("diff", "a", "b", "--tolerance", "x"), ("capture", "gpt2")]
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(gpt2_graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for target in ("x.pftrace", "x.json", "x.json.gz", "x.trace"):
        result = run("replay", gpt2_graph_file, "--on", "h100", "--trace", tmp_path / target)
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_version() -> None:
    import foretrace

    assert run("--version").stdout.strip() == f"foretrace {foretrace.__version__}"
