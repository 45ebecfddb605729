"""torch.fx in: GraphModules of every origin, saved programs, torch.compile."""

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from foretrace.capture import GraphCollector, capture_graph, graph_from_fx
from foretrace.capture.models import UserModel
from foretrace.capture.pt2 import load_program
from foretrace.ir import ForetraceError, Graph, OpKind


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.head = torch.nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            q = block(x).unsqueeze(1)
            x = x + torch.nn.functional.scaled_dot_product_attention(q, q, q).squeeze(1)
        return self.head(x)


def tokens() -> torch.Tensor:
    return torch.zeros(2, 6, dtype=torch.long)


def recorded() -> Graph:
    return capture_graph(UserModel("tied", Tied(), (tokens(),), {}))


def same(graph: Graph, twin: Graph) -> None:
    assert graph.flops({}) == twin.flops({})
    assert graph.parameter_count == twin.parameter_count
    heavy = [[(op.kind, op.name, op.module) for op in g.ops if op.kind is not OpKind.VIEW] for g in (graph, twin)]
    assert heavy[0] == heavy[1]


def test_a_saved_program_is_read_without_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "tied.pt2"
    torch.export.save(torch.export.export(Tied(), (tokens(),)), file)
    same(graph_from_fx(load_program(file)), recorded())
    same(capture_graph(str(file)), recorded())


def test_torch_compile() -> None:
    collector = GraphCollector()
    torch.compile(Tied(), backend=collector)(tokens())
    torch._dynamo.reset()
    (graph,) = collector.graphs
    assert graph.flops({}) == recorded().flops({})
    assert graph.parameter_count == recorded().parameter_count


def test_symbolic_trace_with_example_inputs() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x = torch.zeros(3, 8)
    graph = graph_from_fx(torch.fx.symbolic_trace(plain), inputs=[x])
    twin = capture_graph(UserModel("plain", plain, (x,), {}))
    assert graph.flops({}) == twin.flops({}) == 2 * 3 * (8 * 4 + 4 * 2)
    with pytest.raises(ForetraceError, match=r"expected 1 example inputs \(input_1\), got 2"):
        graph_from_fx(torch.fx.symbolic_trace(plain), inputs=[x, x])


def rewrite(file: Path, change: dict[str, bytes]) -> Path:
    """The archive *file* with the members whose names end in a key of *change* replaced."""
    out = file.with_name("changed.pt2")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(out, "w") as target:
        for item in source.infolist():
            data = next((v for k, v in change.items() if item.filename.endswith(k)), source.read(item))
            target.writestr(item, data)
    return out


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "relu.pt2"
    torch.export.save(torch.export.export(torch.nn.Sequential(torch.nn.Linear(4, 4)), (torch.zeros(2, 4),)), file)
    return file


class Bomb:
    def __reduce__(self) -> object:
        return (Path.touch, (Path("owned"),))


def test_nothing_in_the_archive_is_unpickled(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph_from_fx(load_program(rewrite(saved, {"model.pt": pickle.dumps(Bomb())})))
    assert not (tmp_path / "owned").exists()


def test_operators_that_are_not_torchs_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        text = archive.read(name).decode()
    for hostile in ("torch.load", "torch.ops.loading.load_library", "_operator.a.b", "os.system"):
        changed = text.replace("torch.ops.aten.linear.default", hostile)
        assert changed != text
        with pytest.raises(ForetraceError, match="no operator of torch's own; not executed"):
            load_program(rewrite(saved, {"models/model.json": changed.encode()}))


class Product(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) @ x.transpose(-1, -2)


@pytest.fixture
def saved_open(tmp_path: Path) -> Path:
    file = tmp_path / "open.pt2"
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)
    torch.export.save(torch.export.export(Product(), (torch.zeros(2, 5, 8),), dynamic_shapes=sizes), file)
    return file


def test_a_saved_program_keeps_its_sizes_open(saved_open: Path) -> None:
    graph = graph_from_fx(load_program(saved_open))
    batch, seq = graph.symbols
    assert graph.flops({batch: 3, seq: 7}) == 2 * 3 * 7 * 7 * 8


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch owned') or s77",
        "Symbol('s77').__class__",
        "(lambda: Symbol('s77'))()",
        "[s77][0]",
        "exec('1')",
        "Symbol('s77; import os')",
    ],
)
def test_expressions_are_never_evaluated_as_code(
    saved_open: Path, hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(saved_open) as archive:
        text = archive.read(next(n for n in archive.namelist() if n.endswith("models/model.json"))).decode()
    changed = re.sub(r'"expr_str": "[^"]*"', json.dumps({"expr_str": hostile})[1:-1].replace("\\", r"\\"), text)
    assert changed != text
    with pytest.raises(ForetraceError, match="is no arithmetic over sizes; not evaluated"):
        load_program(rewrite(saved_open, {"models/model.json": changed.encode()}))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_no_archive(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.pt2"
    file.write_bytes(data)
    with pytest.raises(ForetraceError, match=r"not a torch\.export archive, or cut off"):
        capture_graph(str(file))


def test_cut_and_changed_archives(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(0, len(whole), 97):
        with pytest.raises(ForetraceError):
            load_program_bytes(saved, whole[:size])
    for change in (
        {"models/model.json": b"[]"},
        {"models/model.json": b"{"},
        {"weights_config.json": b'{"config": 3}'},
    ):
        with pytest.raises(ForetraceError):
            load_program(rewrite(saved, change))


def load_program_bytes(file: Path, data: bytes) -> None:
    cut = file.with_name("cut.pt2")
    cut.write_bytes(data)
    load_program(cut)


def test_a_program_has_one_phase(saved: Path) -> None:
    with pytest.raises(ForetraceError, match="a program holds one forward, got --phase decode"):
        capture_graph(str(saved), phase="decode")


class Picks(torch.nn.Module):
    """Checks what is in its ids, as vision-language models check that there are as many image tokens as patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        marked = ids == 9
        torch._check(marked.sum().item() >= 1)
        return self.head(self.embed(ids) * marked[..., None].to(torch.float32))


def test_what_a_program_asserts_of_its_inputs_is_taken_to_hold() -> None:
    program = torch.export.export(Picks(), (torch.full((2, 6), 9),))
    targets = {str(n.target) for n in program.module().graph.nodes}
    assert {"aten._assert_scalar.default", "aten._assert_tensor_metadata.default"} <= targets
    graph = graph_from_fx(program)
    assert graph.flops({}) == 2 * 12 * 8 * 4
    assert not any("assert" in op.name for op in graph.ops)
