"""`.pt2` files (torch.export.save) as exported programs without weights, and without running anything from the file.

`torch.export.load` unpickles example inputs and custom objects, which executes code of whoever made the file. Here only
the JSON of the archive is read: the graph, and the shapes of weights and constants. Operators are those of torch's own
libraries; a file that names anything else is refused.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foretrace.ir import ForetraceError, FormatError

MAX_JSON_BYTES = 256 << 20
MAX_CONSTANT_ELEMENTS = 1 << 24
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?"
    r"|_?operator\.(add|sub|mul|neg|floordiv|truediv|mod|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.(sym_\w+|_sym_\w+)|math\.(ceil|floor|trunc|sqrt)"
)
_WORDS = (
    r"Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|TruncToInt|ToFloat"
    r"|positive|nonnegative|integer|True|False|[su]\d+"
)
_EXPRESSION = re.compile(rf"(?:\b(?:{_WORDS})\b|'[su]\d+'|\d+|[-+*/(),= ])*")  # torch has sympify evaluate these
_EXPRESSIONS = ("expr_str",)
_CALLS = ("target", "as_operator")


def load_program(path: str | Path) -> "torch.export.ExportedProgram":
    """The program in *path* with weights and float constants on meta.

    Raises `FormatError` for a file that is no such archive or is cut off, `ForetraceError` for one that holds pickled
    objects or operators that are not torch's own.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {i.filename.split("/", 1)[-1]: i for i in archive.infolist()}
            models = [name for name in files if re.fullmatch(r"models/[^/]+\.json", name)]
            if len(models) != 1:
                raise FormatError(f"{path}: expected one program in a torch.export archive, found {len(models)}")
            name = Path(models[0]).stem
            document = _json(archive, files, models[0])
            weights = _json(archive, files, f"data/weights/{name}_weights_config.json")
            constants = _json(archive, files, f"data/constants/{name}_constants_config.json")
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RecursionError) as e:
        raise FormatError(f"{path}: not a torch.export archive, or cut off: {e}") from e
    for key, text in _strings(document):
        if key in _CALLS and not _TARGET.fullmatch(text):
            raise ForetraceError(f"{path}: calls {text[:80]!r}, which is no operator of torch's own; not executed")
        if key in _EXPRESSIONS and not _EXPRESSION.fullmatch(text):
            raise ForetraceError(f"{path}: {text[:80]!r} is no arithmetic over sizes; not evaluated")
    try:
        return _deserialize(document, _tensors(path, weights), _tensors(path, constants))
    except ForetraceError:
        raise
    except Exception as e:  # torch's deserializer fails in as many ways as a file can be wrong
        raise FormatError(f"{path}: torch cannot read this program: {type(e).__name__}: {e}") from e


def _json(archive: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo], name: str) -> Any:
    if name not in files:
        return {"config": {}}
    if files[name].file_size > MAX_JSON_BYTES:
        raise ValueError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
    with archive.open(files[name]) as f:
        return json.loads(f.read(MAX_JSON_BYTES))


def _strings(document: Any) -> Iterator[tuple[str, str]]:
    """Every (key, string) of the document, however deep; output and input specs name their targets without calling."""
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            is_call = "target" in value and "inputs" in value
            stack.extend((k if k != "target" or is_call else "", v) for k, v in value.items())
        elif isinstance(value, list):
            stack.extend((key, v) for v in value)


def _tensors(path: str | Path, config: Any) -> dict[str, torch.Tensor]:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    tensors: dict[str, torch.Tensor] = {}
    by_file: dict[str, torch.Tensor] = {}  # tied weights are stored once and named twice
    for name, entry in config["config"].items():
        meta = entry.get("tensor_meta")
        if entry.get("use_pickle") or meta is None:
            raise ForetraceError(f"{path}: {name} is a pickled object, which is not loaded")
        dtype = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        sizes = [s["as_int"] for s in meta["sizes"]]
        on_meta = dtype.is_floating_point or dtype.is_complex
        tensor = torch.empty(sizes, dtype=dtype, device="meta")
        if not on_meta and tensor.numel() <= MAX_CONSTANT_ELEMENTS:
            tensor = torch.zeros(sizes, dtype=dtype)
        is_parameter = entry.get("is_param") and on_meta
        if is_parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        tensors[name] = by_file.setdefault(str(entry.get("path_name", name)), tensor)
    return tensors


def _deserialize(document: Any, weights: Any, constants: Any) -> "torch.export.ExportedProgram":
    from torch._export.serde import schema, serialize

    program = serialize._dict_to_dataclass(schema.ExportedProgram, document)
    program.guards_code = []  # Python source from the file: neither needed nor run
    return serialize.ExportedProgramDeserializer({}).deserialize(program, weights, constants, None)
