"""ONNX files exported from PyTorch: the same FLOPs and parameters as their twin, sizes open; the command line."""

import json
import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from foretrace.capture import capture_graph
from foretrace.capture.models import UserModel
from foretrace.capture.onnx import capture_onnx
from foretrace.cli import app
from foretrace.ir import OpKind, find_blocks, load_graph

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters' own


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, s, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, s, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(n, s, 16))
        return x + self.mlp(x)


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.layers = torch.nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return x


class Vision(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, groups=8, dilation=2)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.second(torch.relu(self.first(x)))), 2)
        return self.head(torch.nn.functional.interpolate(x, scale_factor=2.0).mean((2, 3)))


CASES = {
    "transformer": (Transformer, torch.ones(3, 7, dtype=torch.long), {0: "n", 1: "s"}, (5, 11)),
    "vision": (Vision, torch.randn(3, 3, 40, 32), {0: "n", 2: "h", 3: "w"}, (5, 3, 64, 48)),
}


def export(name: str, dynamo: bool, folder: Path) -> Path:
    make, x, dims, _ = CASES[name]
    torch.manual_seed(0)
    root = make().eval()
    for p in root.parameters():
        torch.nn.init.normal_(p)  # exporters store equal tensors, such as zero biases, once
    path = folder / f"{name}_{dynamo}.onnx"
    logging.disable(logging.WARNING)
    try:
        if dynamo:
            shapes = ({i: torch.export.Dim(d, min=2, max=4096) for i, d in dims.items()},)
            torch.onnx.export(root, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
        else:
            torch.onnx.export(root, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": dims})
    finally:
        logging.disable(logging.NOTSET)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {(name, dynamo): export(name, dynamo, folder) for name in CASES for dynamo in (True, False)}


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_exported_models_equal_their_twin_at_any_size(
    name: str, dynamo: bool, files: dict[tuple[str, bool], Path]
) -> None:
    make, x, dims, other = CASES[name]
    graph = capture_onnx(files[name, dynamo])
    assert set(graph.symbols) == set(dims.values())
    for size in (tuple(x.shape), other):
        twin = capture_graph(UserModel("twin", make().eval(), (torch.ones(size, dtype=x.dtype),), {}))
        assert graph.flops({d: size[i] for i, d in dims.items()}) == twin.flops({})
        assert graph.parameter_count == twin.parameter_count
    assert not [op.name for op in graph.ops if op.kind is OpKind.OTHER]
    shape_work = {"onnx::Shape", "onnx::Constant", "onnx::ConstantOfShape"} & {op.name for op in graph.ops}
    assert not shape_work


@pytest.mark.parametrize("dynamo", [True, False])
def test_layers_fold(dynamo: bool, files: dict[tuple[str, bool], Path]) -> None:
    blocks = [b for b in find_blocks(capture_onnx(files["transformer", dynamo])) if b.path == "layers.*"]
    assert sum(b.repeats for b in blocks) == 3
    assert max(b.repeats for b in blocks) >= 2


def test_captures_are_equal_and_survive_a_file(files: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    from foretrace.ir import save_graph

    graph = capture_onnx(files["vision", True], dims={"n": 4})
    assert graph == capture_onnx(files["vision", True], dims={"n": 4})
    save_graph(graph, tmp_path / "v.graph")
    assert load_graph(tmp_path / "v.graph") == graph
    assert graph.metadata["recorder"] == "onnx"
    assert graph.metadata["producer"].startswith("pytorch")
    assert graph.symbols["n"].default == 4


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line(files: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    file = files["transformer", True]
    run("capture", file, "--dim", "n=8", "--dim", "s=16", "-o", tmp_path / "t.graph")
    assert load_graph(tmp_path / "t.graph").bind({}) == {"n": 8, "s": 16}
    inspected = json.loads(run("inspect", file, "--dim", "n=2", "--dim", "s=16", "--json"))
    replayed = json.loads(run("replay", file, "--on", "h100-sxm", "--dim", "n=2", "--dim", "s=16", "--json"))
    assert inspected["flops"] == replayed["flops"] == load_graph(tmp_path / "t.graph").flops({"n": 2, "s": 16})
    assert replayed["time_s"] > 0
    refused = CliRunner().invoke(app, ["capture", str(file), "--batch", "2", "-o", str(tmp_path / "no.graph")])
    assert refused.exit_code == 1
    assert "unknown symbol 'batch'" in refused.stderr
    assert not (tmp_path / "no.graph").exists()
