"""The bytes of a Chakra file: messages behind their lengths, attributes by the type of their value."""

import struct
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from google.protobuf.message import DecodeError

from foretrace.ir import ForetraceError, FormatError

from . import et_def_pb2
from .nodes import NO_TENSORS, ChakraNode, Value

_pb: Any = et_def_pb2  # generated: its messages have no static types

MAX_MESSAGE_BYTES: Final = 4 << 20  # one node; real ones take some hundred bytes
MAX_KNOWN: Final = 1 << 16  # names, and attributes, that are kept to be shared between nodes
LONG: Final = 1 << 12  # bytes of an attribute that is not kept
TOLERANCE: Final = 2.0  # us between a time and its rounded form: both ends are rounded
EXACT: Final = ("start_s", "duration_s")
"""Attributes of ours: the times before they are rounded to the whole microseconds that Chakra has fields for."""

FIELDS: Final[Mapping[str, str]] = {
    "is_cpu_op": "bool_val",
    "num_ops": "int64_val",
    "tensor_size": "uint64_val",
    "comm_type": "int64_val",
    "comm_size": "int64_val",
    "comm_src": "int32_val",
    "comm_dst": "int32_val",
    "comm_tag": "int32_val",
    "comm_priority": "int32_val",
    "pg_name": "string_val",
}
"""The field that ASTRA-sim's feeder reads of an attribute; it does not look which one is set."""

_BY_TYPE: Final[Mapping[type | None, tuple[str, ...]]] = {
    bool: ("bool",),
    int: ("int64", "uint64"),
    float: ("double",),
    str: ("string",),
    bytes: ("bytes",),
}
_TYPE_OF: Final = {"bool_val": bool, "string_val": str} | dict.fromkeys(("int32_val", "int64_val", "uint64_val"), int)


class Encoder:
    """Turns nodes into bytes; equal attributes are made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, type, Value], bytes] = {}
        self._before_double: dict[str, bytes] = {}

    def head(self, version: str, metadata: Mapping[str, Value]) -> bytes:
        """The first message of a file."""
        message = _pb.GlobalMetadata(version=version)
        message.attr.extend([_attribute(n, v) for n, v in metadata.items()])
        return _delimited(message.SerializeToString())

    def node(self, node: ChakraNode) -> bytes:
        """One node. Raises `ForetraceError` for what the format cannot hold."""
        start = max(node.start_s, 0.0)
        first = round(start * 1e6)
        attribute = self._attribute
        given = [attribute(n, v) for n, v in node.attributes.items() if n not in EXACT]
        try:
            message = _pb.Node(
                id=node.id,
                name=node.name,
                type=node.type,
                ctrl_deps=node.ctrl_deps,
                data_deps=node.data_deps,
                start_time_micros=first,
                duration_micros=round((start + node.duration_s) * 1e6) - first,  # on one stream these add up exactly
                attr=[*given, attribute("start_s", node.start_s), attribute("duration_s", node.duration_s)],
            )
        except (ValueError, TypeError, OverflowError) as e:
            raise ForetraceError(f"node {node.id} ({node.name!r:.60}) cannot be written: {e}") from e
        for side, texts in (("inputs", node.inputs), ("outputs", node.outputs)):
            if texts != NO_TENSORS:
                info = getattr(message, side)
                info.values, info.shapes, info.types = texts
        body: bytes = message.SerializeToString()
        if len(body) > MAX_MESSAGE_BYTES:
            raise ForetraceError(f"node {node.id} ({node.name!r:.60}): {len(body)} bytes, at most {MAX_MESSAGE_BYTES}")
        return _delimited(body)

    def _attribute(self, name: str, value: Value) -> bytes:
        if type(value) is float:  # times are all different: the field's tag and eight bytes, behind the name
            before = self._before_double.get(name)
            if before is None:
                before = self._before_double[name] = _bytes(_pb.AttributeProto(name=name)) + b"\x19"
            return before + struct.pack("<d", value)
        if not isinstance(value, bool | int | str | bytes):
            return _bytes(_attribute(name, value))  # (1,) equals (True,)
        key = (name, type(value), value)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _bytes(_attribute(name, value))
        return found


def _bytes(message: Any) -> bytes:
    found: bytes = message.SerializeToString()
    return found


def _attribute(name: str, value: Value) -> Any:
    for field in _fields(name, value):
        try:
            if field.endswith("_list"):
                return _pb.AttributeProto(name=name, **{field: {"values": value}})
            return _pb.AttributeProto(name=name, **({field: value} if field else {}))
        except (ValueError, TypeError, OverflowError):
            continue
    raise ForetraceError(f"attribute {name!r:.60}: a Chakra trace cannot hold {value!r:.80}")


def _fields(name: str, value: Value) -> Iterator[str]:
    """The fields that may hold *value*, the best first."""
    if value is None:
        yield ""
    elif isinstance(value, tuple):
        kinds = {type(v) for v in value} or {int}
        kind = kinds.pop() if len(kinds) == 1 else None
        yield from (f"{base}_list" for base in _BY_TYPE.get(kind, ()))
    else:
        bases = _BY_TYPE.get(type(value), ())
        wanted = FIELDS.get(name, "")
        if wanted and type(value) is _TYPE_OF[wanted]:
            yield wanted
        yield from (f"{base}_val" for base in bases)


def _delimited(body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + body


class CutOffError(FormatError):
    """The file ends inside a message; everything before it was sound."""


def read_messages(stream: IO[bytes], label: str) -> Iterator[tuple[int, bytes]]:
    """The messages of *stream*, each with the offset of its length; one is held at a time.

    Raises `CutOffError` where the file ends inside a message, `FormatError` for a length beyond
    `MAX_MESSAGE_BYTES`; both name the offset.
    """
    offset = 0
    while first := stream.read(1):
        raw = bytearray(first)
        while raw[-1] & 0x80 and len(raw) < 10 and (more := stream.read(1)):
            raw += more
        size = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(raw))
        if size > MAX_MESSAGE_BYTES or len(raw) == 10:
            raise FormatError(
                f"{label}: byte {offset}: a message of {size} bytes, at most {MAX_MESSAGE_BYTES} are read: "
                "damaged, or no Chakra trace"
            )
        body = b"" if raw[-1] & 0x80 else stream.read(size)
        if raw[-1] & 0x80 or len(body) < size:
            raise CutOffError(f"{label}: cut off: byte {offset}: {size} bytes are announced and {len(body)} are left")
        yield offset, body
        offset += len(raw) + size


class Decoder:
    """Turns the messages of a file called *label* into nodes; equal attributes are read once, and share their value."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._known: dict[bytes, tuple[str, Value]] = {}
        self._names: dict[str, str] = {}

    def head(self, body: bytes) -> tuple[str, dict[str, Value]]:
        """Version and attributes of the first message. Raises `FormatError`."""
        message = _pb.GlobalMetadata()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise FormatError(f"{self.label}: byte 0: no Chakra trace: its first message is no metadata") from None
        return message.version, dict(map(_pair, message.attr))

    def node(self, body: bytes, offset: int) -> ChakraNode:
        """A node from its message; attributes that we do not know are kept. Raises `FormatError`."""
        message = _pb.Node()
        try:
            message.ParseFromString(body)
            attributes = dict([self._attribute(raw) for raw in message.attr])
        except DecodeError:
            raise FormatError(
                f"{self.label}: byte {offset}: damaged: the message of {len(body)} bytes is no node"
            ) from None
        name = message.name
        if len(self._names) < MAX_KNOWN:
            name = self._names.setdefault(name, name)
        return ChakraNode(
            message.id,
            name,
            message.type,
            tuple(message.data_deps),
            tuple(message.ctrl_deps),
            _exact(attributes.pop("start_s", None), message.start_time_micros),
            _exact(attributes.pop("duration_s", None), message.duration_micros),
            attributes,
            _tensors(message.inputs) if message.HasField("inputs") else NO_TENSORS,
            _tensors(message.outputs) if message.HasField("outputs") else NO_TENSORS,
        )

    def _attribute(self, raw: bytes) -> tuple[str, Value]:
        found = self._known.get(raw)
        if found is None:
            found = _pair(_pb.AttributeProto.FromString(raw))
            if len(self._known) < MAX_KNOWN and not isinstance(found[1], float) and len(raw) < LONG:
                self._known[raw] = found
        return found


def _pair(attribute: Any) -> tuple[str, Value]:
    field = attribute.WhichOneof("value")
    value: Any = getattr(attribute, field) if field else None
    return sys.intern(attribute.name), tuple(value.values) if field and field.endswith("_list") else value


def _exact(seconds: Value, micros: int) -> float:
    """*seconds* where they agree with the whole *micros*, which hold where another tool has changed them."""
    if isinstance(seconds, float) and (abs(seconds * 1e6 - micros) <= TOLERANCE or (seconds < 0 and not micros)):
        return seconds
    return micros * 1e-6


def _tensors(info: Any) -> tuple[str, str, str]:
    return info.values, info.shapes, info.types
