"""The protobuf form of a Graph on disk: `save_graph`, `load_graph`. The schema is graph.proto."""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from . import graph_pb2
from .collector import without_collector
from .dim import DimLike, Shape, parse_dim
from .dtype import parse_dtype
from .errors import ForetraceError, FormatError, GraphError
from .files import read_file, write_atomically
from .graph import Graph, Op, OpKind, Role, Symbol, Tensor, Work
from .values import format_value, parse_value
from .verify import verify

_pb: Any = graph_pb2  # generated: its messages have no static types
MAGIC: Final = b"FTGRAPH\n"
HEADER: Final = struct.Struct("<8sIQI")
CONTAINER_VERSION: Final = 1
SCHEMA_VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 64 << 20  # a graph takes some 130 bytes an op
MAX_RATIO: Final = 200  # of payload to file; real graphs deflate 6 times, the dullest 16, a bomb 1000 times
MAX_ITEMS: Final = 2_000_000  # tensors, and as many ops
MAX_DIM_CHARS: Final = 1 << 18  # a symbolic size costs about 33 us a character to read


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Verify *graph* and write it to *path*, whole or not at all (`ForetraceError` on failure)."""
    write_atomically(path, encode_graph(verify(graph)))


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read and verify a graph. Raises `FormatError` naming the file and what is wrong with it."""
    data = read_file(path, HEADER.size + 2 * MAX_PAYLOAD_BYTES)
    try:
        with without_collector():  # a third of the load
            return verify(decode_graph(data))
    except ForetraceError as e:
        raise FormatError(f"{path}: {e}") from e


def encode_graph(graph: Graph) -> bytes:
    """*graph* as bytes: header and deflated protobuf. Equal graphs give equal bytes.

    Raises `GraphError` for what the format cannot hold: too many ops, a value that is no attribute, broken Unicode.
    """
    try:
        payload = _to_message(graph).SerializeToString(deterministic=True)
    except (ValueError, TypeError) as e:
        raise GraphError(f"graph {graph.name!r} cannot be written: {e}") from e
    if len(payload) > MAX_PAYLOAD_BYTES or max(len(graph.tensors), len(graph.ops)) > MAX_ITEMS:
        raise GraphError(
            f"graph {graph.name} is too large to write: {len(graph.ops)} ops, {len(payload)} bytes, "
            f"of at most {MAX_ITEMS} and {MAX_PAYLOAD_BYTES}"
        )
    return HEADER.pack(MAGIC, CONTAINER_VERSION, len(payload), zlib.crc32(payload)) + zlib.compress(payload, 6)


def decode_graph(data: bytes) -> Graph:
    """Read what `encode_graph` wrote, any version up to today's; the graph is not verified here.

    Raises `FormatError`: not a graph file, cut off, corrupt, or of a newer version.
    """
    message = _pb.Graph()
    try:
        message.ParseFromString(_payload(data))
    except DecodeError as e:
        raise FormatError("the graph is corrupt: its protobuf does not parse") from e
    _check_version("schema", message.version, SCHEMA_VERSION)
    try:
        return _from_message(message)
    except FormatError:
        raise
    except (ForetraceError, ValueError) as e:
        raise FormatError(f"the graph is corrupt: {e}") from e


def _payload(data: bytes) -> bytes:
    if not data.startswith(MAGIC):
        raise FormatError("not a Foretrace graph file (one is written by 'foretrace capture MODEL -o FILE')")
    if len(data) < HEADER.size:
        raise FormatError("the graph is cut off")
    _, container, size, crc = HEADER.unpack_from(data)
    _check_version("container", container, CONTAINER_VERSION)
    most = min(MAX_PAYLOAD_BYTES, MAX_RATIO * len(data))
    if size > most:
        raise FormatError(f"claims {size} bytes of graph, more than the {most} that are read from a file of its size")
    inflate = zlib.decompressobj()
    try:
        payload = inflate.decompress(data[HEADER.size :], size + 1)
    except zlib.error as e:
        raise FormatError("the graph is corrupt: it does not inflate") from e
    if len(payload) > size or inflate.unused_data:
        raise FormatError("the graph is corrupt: it is longer than its header says")
    if len(payload) < size or not inflate.eof:
        raise FormatError("the graph is cut off")
    if zlib.crc32(payload) != crc:
        raise FormatError("the graph is corrupt: its checksum does not match")
    return payload


def _check_version(what: str, found: int, known: int) -> None:
    if found > known:
        raise FormatError(f"written by a newer Foretrace ({what} version {found}, this one reads {known})")
    if found < 1:
        raise FormatError(f"the graph is corrupt: its {what} version is {found}")


class _Table:
    """Distinct values in the order first seen."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def _to_message(graph: Graph) -> Any:
    text, expressions = _Table(), _Table()
    expression_of: dict[DimLike, int] = {}

    def size(dim: DimLike) -> int:
        if isinstance(dim, int) and 0 <= dim < 1 << 62:
            return dim
        if dim not in expression_of:
            expression_of[dim] = -1 - expressions(format_value(dim))
        return expression_of[dim]

    message = _pb.Graph(version=SCHEMA_VERSION, name=graph.name, phase=graph.phase)
    for _, s in sorted(graph.symbols.items()):
        message.symbols.add(
            name=s.name, default=s.default, minimum=s.minimum, maximum=s.maximum, description=s.description
        )
    message.metadata.update(graph.metadata)
    for t in graph.tensors:
        message.tensors.add(
            name=text(t.name),
            shape=map(size, t.shape),
            dtype=text(t.dtype.name),
            role=text(t.role),
            storage=t.storage,
        )
    for op in graph.ops:
        w = op.work
        message.ops.add(
            kind=text(op.kind),
            name=text(op.name),
            inputs=op.inputs,
            outputs=op.outputs,
            attributes=[i for k, v in sorted(op.attributes.items()) for i in (text(k), text(format_value(v)))],
            module=text(op.module),
            phase=text(op.phase),
            work=map(size, (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)),
        )
    message.strings.extend(text.index)
    message.dims.extend(expressions.index)
    return message


class _Parsed(dict[int, Any]):
    """Table index → what a *parse* makes of its text, worked out when first asked for."""

    def __init__(self, strings: Sequence[str], parse: Callable[[str], Any]) -> None:
        self.strings, self.parse = strings, parse

    def __missing__(self, index: int) -> Any:
        self[index] = self.parse(self.strings[index])
        return self[index]


class _Decoder:
    """Turns table indices of one file into values, each worked out once."""

    def __init__(self, message: Any) -> None:
        self.strings: Sequence[str] = list(message.strings)
        if sum(map(len, message.dims)) > MAX_DIM_CHARS:
            raise FormatError(f"the graph has more than {MAX_DIM_CHARS} characters of sizes")
        self.dims = [parse_dim(d) for d in message.dims]
        self.shapes: dict[tuple[int, ...], Shape] = {}
        self.works: dict[tuple[int, ...], Work] = {}
        self.cache: dict[tuple[int, ...], dict[str, Any]] = {}
        self.values = _Parsed(self.strings, self._value)
        self.value_chars = 0

    def _value(self, text: str) -> Any:
        if not text.startswith('"'):
            self.value_chars += len(text)
            if self.value_chars > MAX_DIM_CHARS:
                raise FormatError(f"the graph has more than {MAX_DIM_CHARS} characters of attribute values")
        return parse_value(text)

    def shape(self, raw: Iterable[int]) -> Shape:
        """Sizes: numbers as they are, expressions from their table."""
        key = tuple(raw)
        found = self.shapes.get(key)
        if found is None:
            try:
                found = self.shapes[key] = tuple([n if n >= 0 else self.dims[-n - 1] for n in key])
            except IndexError:
                raise FormatError(f"the graph is corrupt: a size beyond its {len(self.dims)} expressions") from None
        return found

    def work(self, raw: Iterable[int]) -> Work:
        """The five entries of a `Work`."""
        key = tuple(raw)
        found = self.works.get(key)
        if found is None:
            if len(key) != 5:
                raise FormatError(f"the graph is corrupt: work has five entries, got {len(key)}")
            found = self.works[key] = Work(*self.shape(key))
        return found

    def attributes(self, raw: Iterable[int]) -> dict[str, Any]:
        """Pairs of key and value; a dict of its own for each op."""
        key = tuple(raw)
        found = self.cache.get(key)
        if found is None:
            if len(key) % 2:
                raise FormatError("the graph is corrupt: an attribute without a value")
            pairs = zip(key[::2], key[1::2], strict=True)
            found = self.cache[key] = {self.strings[k]: self.values[v] for k, v in pairs}
        return found.copy()


def _from_message(message: Any) -> Graph:
    if max(len(message.tensors), len(message.ops), len(message.dims)) > MAX_ITEMS:
        raise FormatError(f"more than the {MAX_ITEMS} ops or tensors that are read")
    d = _Decoder(message)
    symbols = {
        s.name: Symbol(s.name, s.default, s.minimum, s.maximum if s.HasField("maximum") else None, s.description)
        for s in message.symbols
    }
    try:
        tensors, ops = tuple(_tensors(message, d)), tuple(_ops(message, d))
    except IndexError:
        raise FormatError(f"the graph is corrupt: a name beyond its {len(d.strings)} strings") from None
    return Graph(message.name, message.phase, symbols, tensors, ops, dict(sorted(message.metadata.items())))


def _tensors(message: Any, d: _Decoder) -> Iterator[Tensor]:
    text, dtype, role = d.strings, _Parsed(d.strings, parse_dtype), _Parsed(d.strings, Role)
    for t in message.tensors:
        yield Tensor(text[t.name], d.shape(t.shape), dtype[t.dtype], role[t.role], t.storage)


def _ops(message: Any, d: _Decoder) -> Iterator[Op]:
    text, kind = d.strings, _Parsed(d.strings, OpKind)
    for o in message.ops:
        yield Op(
            kind[o.kind],
            text[o.name],
            tuple(o.inputs),
            tuple(o.outputs),
            d.attributes(o.attributes),
            text[o.module],
            text[o.phase],
            d.work(o.work),
        )
