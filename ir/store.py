"""The protobuf form of a Graph on disk: `save_graph`, `load_graph`. The schema is graph.proto."""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from . import graph_pb2
from .dim import DimLike, parse_dim
from .dtype import DType, parse_dtype
from .errors import ForetraceError, FormatError
from .files import read_file, write_atomically
from .graph import Graph, Op, OpKind, Role, Symbol, Tensor, Work
from .values import format_value, parse_value
from .verify import verify

_pb: Any = graph_pb2  # generated: its messages have no static types
MAGIC: Final = b"FTGRAPH\n"
HEADER: Final = struct.Struct("<8sIQI")
CONTAINER_VERSION: Final = 1
SCHEMA_VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 1 << 30


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write *graph* to *path*, whole or not at all (`ForetraceError` on failure)."""
    write_atomically(path, encode_graph(graph))


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read and verify a graph. Raises `FormatError` naming the file and what is wrong with it."""
    try:
        return verify(decode_graph(read_file(path)))
    except ForetraceError as e:
        message = str(e)
        raise FormatError(message if str(path) in message else f"{os.fspath(path)}: {message}") from e


def encode_graph(graph: Graph) -> bytes:
    """*graph* as bytes: header and deflated protobuf. Equal graphs give equal bytes."""
    payload = _to_message(graph).SerializeToString(deterministic=True)
    return HEADER.pack(MAGIC, CONTAINER_VERSION, len(payload), zlib.crc32(payload)) + zlib.compress(payload, 6)


def decode_graph(data: bytes) -> Graph:
    """Read what `encode_graph` wrote, any version up to today's; the graph is not verified here.

    Raises `FormatError`: not a graph file, cut off, corrupt, or of a newer version.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise FormatError("not a Foretrace graph file (one is written by 'foretrace capture MODEL -o FILE')")
    _, container, size, crc = HEADER.unpack_from(data)
    if container > CONTAINER_VERSION:
        raise FormatError(
            f"written by a newer Foretrace (container version {container}, this one reads {CONTAINER_VERSION})"
        )
    if size > MAX_PAYLOAD_BYTES:
        raise FormatError(f"claims {size} bytes of graph, more than the {MAX_PAYLOAD_BYTES} that are read")
    inflate = zlib.decompressobj()
    try:
        payload = inflate.decompress(data[HEADER.size :], size + 1)
    except zlib.error as e:
        raise FormatError("the graph is corrupt: it does not inflate") from e
    if len(payload) != size or not inflate.eof:
        raise FormatError(
            "the graph is cut off" if len(payload) < size else "the graph is corrupt: it is longer than its header says"
        )
    if zlib.crc32(payload) != crc:
        raise FormatError("the graph is corrupt: its checksum does not match")
    message = _pb.Graph()
    try:
        message.ParseFromString(payload)
    except DecodeError as e:
        raise FormatError("the graph is corrupt: its protobuf does not parse") from e
    return _from_message(message)


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
            expression_of[dim] = -1 - expressions(str(dim))
        return expression_of[dim]

    message = _pb.Graph(version=SCHEMA_VERSION, name=graph.name, phase=graph.phase)
    for s in graph.symbols.values():
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
            attributes=[i for k, v in op.attributes.items() for i in (text(k), text(format_value(v)))],
            module=text(op.module),
            phase=text(op.phase),
            work=map(size, (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)),
        )
    message.strings.extend(text.index)
    message.dims.extend(expressions.index)
    return message


class _Decoder:
    """Turns table indices of one file into values, each worked out once."""

    def __init__(self, message: Any) -> None:
        self.strings: Sequence[str] = list(message.strings)
        self.dims = [parse_dim(d) for d in message.dims]
        self.cache: dict[tuple[str, int], Any] = {}
        self.works: dict[tuple[int, ...], Work] = {}

    def text(self, index: int) -> str:
        if index >= len(self.strings):
            raise FormatError(f"the graph is corrupt: string {index} of {len(self.strings)}")
        return self.strings[index]

    def parsed(self, what: str, parse: Callable[[str], Any], index: int) -> Any:
        key = (what, index)
        if key not in self.cache:
            try:
                self.cache[key] = parse(self.text(index))
            except ValueError as e:
                raise FormatError(f"the graph is corrupt: unknown {what} {self.text(index)!r}") from e
        return self.cache[key]

    def sizes(self, raw: Iterable[int]) -> tuple[DimLike, ...]:
        try:
            return tuple([n if n >= 0 else self.dims[-n - 1] for n in raw])
        except IndexError:
            raise FormatError(f"the graph is corrupt: a size beyond its {len(self.dims)} expressions") from None

    def work(self, raw: Iterable[int]) -> Work:
        key = tuple(raw)
        if key not in self.works:
            if len(key) != 5:
                raise FormatError(f"the graph is corrupt: work has five entries, got {len(key)}")
            self.works[key] = Work(*self.sizes(key))
        return self.works[key]

    def attributes(self, raw: Sequence[int]) -> dict[str, Any]:
        if len(raw) % 2:
            raise FormatError("the graph is corrupt: an attribute without a value")
        return {self.text(k): self.parsed("value", parse_value, v) for k, v in zip(raw[::2], raw[1::2], strict=True)}


def _from_message(message: Any) -> Graph:
    if message.version > SCHEMA_VERSION:
        raise FormatError(
            f"written by a newer Foretrace (schema version {message.version}, this one reads {SCHEMA_VERSION})"
        )
    d = _Decoder(message)
    symbols = {
        s.name: Symbol(s.name, s.default, s.minimum, s.maximum if s.HasField("maximum") else None, s.description)
        for s in message.symbols
    }
    dtype: Callable[[str], DType] = parse_dtype
    tensors = tuple(
        Tensor(
            d.text(t.name),
            d.sizes(t.shape),
            d.parsed("dtype", dtype, t.dtype),
            d.parsed("role", Role, t.role),
            t.storage,
        )
        for t in message.tensors
    )
    ops = tuple(
        Op(
            d.parsed("kind", OpKind, o.kind),
            d.text(o.name),
            tuple(o.inputs),
            tuple(o.outputs),
            d.attributes(o.attributes),
            d.text(o.module),
            d.text(o.phase),
            d.work(o.work),
        )
        for o in message.ops
    )
    return Graph(message.name, message.phase, symbols, tensors, ops, dict(message.metadata))
