"""The text form of a Graph: one line a symbol, tensor or op; `parse_text(print_text(g)) == g`.

graph "tiny" phase=forward
symbol batch default=1 minimum=1 maximum=none "sequences"
meta "dtype" = "float32"
tensor %0 float32 [768, 64] parameter storage=0 "wte.weight"
op [2] = matmul "aten.mm.default" [1, 0] {b: 1, m: batch*seq, n: 64, k: 768} "h.0" forward [2*batch, 0, 0, 8, 8]
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from .dim import Dim
from .dtype import parse_dtype
from .errors import ForetraceError, FormatError
from .graph import Graph, Op, OpKind, Role, Symbol, Tensor, Work
from .values import format_value, read_value


def print_text(graph: Graph) -> str:
    """*graph* as text, deterministic."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    yield f"graph {_quoted(graph.name)} phase={graph.phase}"
    for s in graph.symbols.values():
        maximum = "none" if s.maximum is None else s.maximum
        yield f"symbol {s.name} default={s.default} minimum={s.minimum} maximum={maximum} {_quoted(s.description)}"
    for key, value in graph.metadata.items():
        yield f"meta {_quoted(key)} = {_quoted(value)}"
    for i, t in enumerate(graph.tensors):
        yield f"tensor %{i} {t.dtype} {format_value(t.shape)} {t.role} storage={t.storage} {_quoted(t.name)}"
    for op in graph.ops:
        w = op.work
        work = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
        attributes = ", ".join(f"{_quoted(k)}: {format_value(v)}" for k, v in op.attributes.items())
        yield (
            f"op {format_value(op.outputs)} = {op.kind} {_quoted(op.name)} {format_value(op.inputs)} {{{attributes}}} "
            f"{_quoted(op.module)} {op.phase} {format_value(work)}"
        )


def _quoted(text: str) -> str:
    # JSON, with every line separator escaped so that one line stays one line
    return (
        json.dumps(text, ensure_ascii=False)
        .replace("\x85", "\\u0085")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


_STRING = r'("(?:[^"\\]|\\.)*")'
_GRAPH = re.compile(rf"graph {_STRING} phase=(\w+)$")
_SYMBOL = re.compile(rf"symbol (\w+) default=(\d+) minimum=(\d+) maximum=(none|\d+) {_STRING}$")
_META = re.compile(rf"meta {_STRING} = {_STRING}$")
_TENSOR = re.compile(rf"tensor %(\d+) (\w+) (\[[^\]]*\]) (\w+) storage=(\d+) {_STRING}$")
_OP = re.compile(rf"op (\[[^\]]*\]) = (\w+) {_STRING} (\[[^\]]*\]) \{{(.*)\}} {_STRING} (\w+) (\[.*\])$")


def parse_text(text: str) -> Graph:
    """Read the text form. Raises `FormatError` with the line number; call `verify` for the graph's own rules."""
    name = phase = None
    symbols: dict[str, Symbol] = {}
    metadata: dict[str, str] = {}
    tensors: list[Tensor] = []
    ops: list[Op] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            word = line.split(" ", 1)[0]
            if word == "graph":
                name, phase = _match(_GRAPH, line)
                name = json.loads(name)
            elif word == "symbol":
                s = _symbol(_match(_SYMBOL, line))
                symbols[s.name] = s
            elif word == "meta":
                key, value = _match(_META, line)
                metadata[json.loads(key)] = json.loads(value)
            elif word == "tensor":
                tensors.append(_tensor(_match(_TENSOR, line), len(tensors)))
            elif word == "op":
                ops.append(_op(_match(_OP, line)))
            else:
                raise FormatError(f"expected graph, symbol, meta, tensor or op, got {word!r}")
        except (ForetraceError, ValueError) as e:
            raise FormatError(f"line {number}: {e}") from e
    if name is None or phase is None:
        raise FormatError("no 'graph \"NAME\" phase=PHASE' line")
    return Graph(name, phase, symbols, tuple(tensors), tuple(ops), metadata)


def _match(pattern: re.Pattern[str], line: str) -> tuple[str, ...]:
    m = pattern.match(line)
    if m is None:
        raise FormatError(f"cannot read {line[:100]!r}")
    return m.groups()


def _symbol(fields: tuple[str, ...]) -> Symbol:
    name, default, minimum, maximum, description = fields
    return Symbol(
        name, int(default), int(minimum), None if maximum == "none" else int(maximum), json.loads(description)
    )


def _tensor(fields: tuple[str, ...], expected: int) -> Tensor:
    number, dtype, shape, role, storage, name = fields
    if int(number) != expected:
        raise FormatError(f"tensor %{number} stands where %{expected} is due")
    return Tensor(json.loads(name), _dims(shape), parse_dtype(dtype), Role(role), int(storage))


def _op(fields: tuple[str, ...]) -> Op:
    outputs, kind, name, inputs, attributes, module, phase, work = fields
    dims = _dims(work)
    if len(dims) != 5:
        raise FormatError(f"work has five entries, got {len(dims)}")
    return Op(
        OpKind(kind),
        json.loads(name),
        _ints(inputs),
        _ints(outputs),
        _attributes(attributes),
        json.loads(module),
        phase,
        Work(*dims),
    )


def _attributes(text: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    at = 0
    while text[at:].strip():
        key, at = read_value(text, at)
        if not isinstance(key, str) or not text.startswith(":", at):
            raise FormatError(f"attributes are '\"name\": value', got {text[:60]!r}")
        result[key], at = read_value(text, at + 1)
        while at < len(text) and text[at] in ", ":
            at += 1
    return result


def _dims(text: str) -> tuple[Any, ...]:
    value = read_value(text, 0)[0]
    if not isinstance(value, tuple) or not all(isinstance(v, int | Dim) and not isinstance(v, bool) for v in value):
        raise FormatError(f"expected a list of sizes, got {text[:60]!r}")
    return value


def _ints(text: str) -> tuple[int, ...]:
    value = _dims(text)
    if not all(isinstance(v, int) for v in value):
        raise FormatError(f"expected tensor numbers, got {text[:60]!r}")
    return value
