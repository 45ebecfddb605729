"""The text form of a Graph: one line a symbol, tensor or op; `parse_text(print_text(g)) == g`.

graph "tiny" phase=forward
symbol batch default=1 minimum=1 maximum=none "sequences"
meta "dtype" = "float32"
tensor %0 float32 [768, 64] parameter storage=0 "wte.weight"
op [2] = matmul "aten.mm.default" [1, 0] {"b": 1, "k": 768, "m": batch, "n": 64} "h.0" forward [98304*batch, 0, 0, 8, 8]
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from .dim import Dim, DimLike
from .dtype import parse_dtype
from .errors import ForetraceError, FormatError
from .graph import Graph, Op, OpKind, Role, Symbol, Tensor, Work
from .values import format_value, quote, read_value


def print_text(graph: Graph) -> str:
    """*graph* as text. Equal graphs give equal text."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    yield f"graph {quote(graph.name)} phase={graph.phase}"
    for _, s in sorted(graph.symbols.items()):
        maximum = "none" if s.maximum is None else s.maximum
        yield f"symbol {s.name} default={s.default} minimum={s.minimum} maximum={maximum} {quote(s.description)}"
    for key, value in sorted(graph.metadata.items()):
        yield f"meta {quote(key)} = {quote(value)}"
    for i, t in enumerate(graph.tensors):
        yield f"tensor %{i} {t.dtype} {format_value(t.shape)} {t.role} storage={t.storage} {quote(t.name)}"
    for op in graph.ops:
        w = op.work
        work = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
        attributes = ", ".join(f"{quote(k)}: {format_value(v)}" for k, v in sorted(op.attributes.items()))
        yield (
            f"op {format_value(op.outputs)} = {op.kind} {quote(op.name)} {format_value(op.inputs)} {{{attributes}}} "
            f"{quote(op.module)} {op.phase} {format_value(work)}"
        )


_STRING: Final = r'("(?:[^"\\]|\\.)*+")'
_GRAPH: Final = re.compile(rf"graph {_STRING} phase=(\w+)$")
_SYMBOL: Final = re.compile(rf"symbol (\w+) default=(\d+) minimum=(\d+) maximum=(none|\d+) {_STRING}$")
_META: Final = re.compile(rf"meta {_STRING} = {_STRING}$")
_TENSOR: Final = re.compile(rf"tensor %(\d+) (\w+) (\[[^\]]*\]) (\w+) storage=(\d+) {_STRING}$")
_OP_HEAD: Final = re.compile(rf"op (\[[^\]]*\]) = (\w+) {_STRING} (\[[^\]]*\]) \{{")
_OP_TAIL: Final = re.compile(rf"\}} {_STRING} (\w+) (\[.*\])$")


def parse_text(text: str) -> Graph:
    """Read the text form. Raises `FormatError` with the line number; call `verify` for the graph's own rules."""
    graph: Graph | None = None
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
            if word == "graph" and graph is None:
                name, phase = _match(_GRAPH, line).groups()
                graph = Graph(json.loads(name), phase, symbols, (), (), metadata)
            elif word == "symbol":
                s = _symbol(_match(_SYMBOL, line).groups())
                _put(symbols, s.name, s)
            elif word == "meta":
                key, value = map(json.loads, _match(_META, line).groups())
                _put(metadata, key, value)
            elif word == "tensor":
                tensors.append(_tensor(_match(_TENSOR, line).groups(), len(tensors)))
            elif word == "op":
                ops.append(_op(line))
            else:
                raise FormatError(f"expected one graph line, then symbol, meta, tensor or op, got {word[:60]!r}")
        except (ForetraceError, ValueError) as e:
            raise FormatError(f"line {number}: {e}") from e
    if graph is None:
        raise FormatError("no 'graph \"NAME\" phase=PHASE' line")
    return Graph(graph.name, graph.phase, symbols, tuple(tensors), tuple(ops), metadata)


def _match(pattern: re.Pattern[str], text: str, at: int = 0) -> re.Match[str]:
    m = pattern.match(text, at)
    if m is None:
        raise FormatError(f"cannot read {text[at : at + 100]!r}")
    return m


def _put(into: dict[str, Any], key: str, value: Any) -> None:
    if key in into:
        raise FormatError(f"{key!r} stands twice")
    into[key] = value


def _symbol(fields: tuple[str, ...]) -> Symbol:
    name, default, minimum, maximum, description = fields
    most = None if maximum == "none" else int(maximum)
    return Symbol(name, int(default), int(minimum), most, json.loads(description))


def _tensor(fields: tuple[str, ...], expected: int) -> Tensor:
    number, dtype, shape, role, storage, name = fields
    if int(number) != expected:
        raise FormatError(f"tensor %{number} stands where %{expected} is due")
    return Tensor(json.loads(name), _dims(shape), parse_dtype(dtype), Role(role), int(storage))


def _op(line: str) -> Op:
    head = _match(_OP_HEAD, line)
    outputs, kind, name, inputs = head.groups()
    attributes, at = _attributes(line, head.end())
    module, phase, work = _match(_OP_TAIL, line, at).groups()
    dims = _dims(work)
    if len(dims) != 5:
        raise FormatError(f"work has five entries, got {len(dims)}")
    return Op(
        OpKind(kind),
        json.loads(name),
        _ints(inputs),
        _ints(outputs),
        attributes,
        json.loads(module),
        phase,
        Work(*dims),
    )


def _attributes(text: str, at: int) -> tuple[dict[str, Any], int]:
    """Read ``"name": value, ...`` from position *at*; gives them and the position of what ends them."""
    result: dict[str, Any] = {}
    while text[at : at + 1] not in ("}", ""):
        end = -1
        if text[at] == '"':
            key, end = read_value(text, at)
        if not text.startswith(":", end):
            raise FormatError(f"attributes are '\"name\": value', got {text[at : at + 60]!r}")
        value, at = read_value(text, end + 1)
        _put(result, key, value)
        while text[at : at + 1] in (",", " "):
            at += 1
    return result, at


def _dims(text: str) -> tuple[DimLike, ...]:
    value, end = read_value(text, 0)
    if end != len(text) or not isinstance(value, tuple):
        raise FormatError(f"expected a list of sizes, got {text[:60]!r}")
    if not all(isinstance(v, int | Dim) and not isinstance(v, bool) for v in value):
        raise FormatError(f"expected a list of sizes, got {text[:60]!r}")
    return value


def _ints(text: str) -> tuple[int, ...]:
    value = _dims(text)
    if not all(isinstance(v, int) for v in value):
        raise FormatError(f"expected tensor numbers, got {text[:60]!r}")
    return value  # type: ignore[return-value]
