"""`--dim NAME=VALUE` at the command line: sizes that have no flag of their own, and programs that take none."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foretrace.cli import app
from foretrace.ir import load_graph

T5 = {
    "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 50,
    "num_hidden_layers": 1, "architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0,
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8, "architectures": ["ViTForImageClassification"],
}  # fmt: skip


def folder(config: dict[str, object], tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def test_a_symbol_without_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "t5.graph"
    run("capture", folder(T5, tmp_path), "--seq", "24", "--dim", "target=20", "-o", str(file))
    symbols = load_graph(file).symbols
    assert (symbols["seq"].default, symbols["target"].default) == (24, 20)


def test_a_size_that_the_model_does_not_take_is_its_own_error(tmp_path: Path) -> None:
    model, out = folder(VIT, tmp_path), str(tmp_path / "vit.graph")
    assert "48*48" in refused("capture", model, "--dim", "height=48", "--dim", "width=48", "-o", out)
    assert "unknown symbol 'hight'; nearest: height" in refused("capture", model, "--dim", "hight=48", "-o", out)
    assert not Path(out).exists()


def test_a_program_at_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "two.pt2"
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    torch.export.save(torch.export.export(layers, (torch.ones(3, 4),)), file)
    assert json.loads(run("inspect", str(file), "--json"))["flops"] == 2 * 3 * (4 * 8 + 8 * 2)
    assert "keeps the sizes it was exported with" in refused("inspect", str(file), "--dim", "rows=3")
    assert "keeps the sizes it was exported with" in refused("inspect", str(file), "--batch", "3")


def test_a_module_of_ones_own_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_layer.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(4, 8), torch.ones(2, 4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "--dim rows" in refused("inspect", "own_layer:make", "--dim", "rows=3")
