"""The rules of the house: which room may import which, what is packaged, what a replay loads."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import foretrace

ALLOWED = {
    "ir": set(),
    "hardware": {"ir"},
    "traces": {"ir"},
    "capture": {"ir", "traces"},
    "transforms": {"ir", "hardware"},
    "replay": {"ir", "hardware", "transforms", "traces"},
}
PACKAGE = Path(foretrace.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def sources(room: str) -> list[Path]:
    return sorted(p for p in (PACKAGE / room).resolve().rglob("*.py") if "recorded" not in p.parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names)
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_run_one_way(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top not in ALLOWED, f"{path} imports {name}: write foretrace.{name}"
            if top == "foretrace" and rest.split(".")[0] in ALLOWED.keys() - {room}:
                assert rest.split(".")[0] in ALLOWED[room], f"{path} imports {name}"


@pytest.mark.parametrize("room", ["ir", "hardware", "traces", "transforms", "replay"])
def test_only_capture_knows_a_framework(room: str) -> None:
    for path in sources(room):
        frameworks = {name.split(".")[0] for name in imports(path)} & {"torch", "onnx", "transformers"}
        assert not frameworks, f"{path} imports {frameworks}"


def test_protobuf_stays_in_the_file_that_writes_it() -> None:
    users = {p.name for p in sources("ir") if any(n.startswith("google.protobuf") for n in imports(p))}
    assert users <= {"store.py", "graph_pb2.py"}


@pytest.mark.checkout
def test_packages_on_disk_are_packaged() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = [*ALLOWED, "src/foretrace"]
    on_disk = {
        ".".join(("foretrace", *p.parent.relative_to(ROOT).parts)).replace("foretrace.src.foretrace", "foretrace")
        for room in rooms
        for p in (ROOT / room).rglob("__init__.py")
        if not any(part.is_symlink() for part in [p, *p.parents])
    }
    assert set(setup["packages"]) == on_disk
    assert set(setup["package-dir"]) == on_disk


@pytest.mark.checkout
def test_each_room_is_linked() -> None:
    for room in ALLOWED:
        link = ROOT / "src" / "foretrace" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_replaying_a_saved_graph_imports_no_torch(gpt2_graph_file: Path) -> None:
    code = f"""
import sys
import foretrace
result = foretrace.replay_graph(foretrace.load_graph({str(gpt2_graph_file)!r}), "h100-sxm")
result.to_json()
heavy = {{"torch", "transformers", "onnx", "pandas", "numba", "pyarrow", "networkx"}} & set(sys.modules)
print(sorted(heavy))
"""
    assert run(code).strip() == "[]"


def test_an_onnx_file_is_captured_without_torch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    file = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_vgg19.onnx"
    if not file.is_file():
        pytest.skip("this version of onnx ships no light models")
    code = f"""
import sys
from foretrace.__main__ import main
sys.argv = ["foretrace", "capture", {str(file)!r}, "-o", {str(tmp_path / "vgg.graph")!r}]
try:
    main()
except SystemExit as e:
    assert not e.code, e.code
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert run(code).strip() == "[]"
    assert (tmp_path / "vgg.graph").is_file()


def test_importing_the_face_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'numba', 'pyarrow'}"
    assert run(f"import sys, foretrace; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"
