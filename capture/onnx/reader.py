"""An ``.onnx`` file → its ModelProto without the weights: large tensor data are passed over, never read.

Only the shapes of weights matter, so the file is mapped, not read, and every tensor payload beyond `KEPT_BYTES` is
left out while the protobuf is scanned; files that hold external data are never opened.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

from foretrace.ir import FormatError

MAX_FILE_BYTES: Final = 2 << 30  # what one protobuf message may hold
MAX_STRUCTURE_BYTES: Final = 256 << 20  # of the file without its weights
KEPT_BYTES: Final = 1 << 16
OPSETS: Final = range(7, 27)
"""Versions of ONNX's own operator set that are read: 9 to 23 are tested, their neighbours differ in few operators."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION = range(7)
_INSIDE: Final[dict[int, dict[int, int]]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
"""Message → field number → message inside it (onnx.proto), of those through which a tensor can be reached."""
_DATA_FIELDS: Final = frozenset({4, 5, 6, 7, 9, 10, 11})  # float, int32, string, int64, raw, double, uint64 data
_MAX_DEPTH: Final = 100  # protobuf's own limit


def read_model(path: Path) -> ModelProto:
    """The model in *path*, tensor payloads beyond `KEPT_BYTES` left out.

    Raises `FormatError` for what is no ONNX model: cut off, another format, too large, an operator set beyond ours.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size == 0:
            raise FormatError(f"{path}: {'is empty' if path.is_file() else 'is not a file'}: expected an ONNX model")
        if size > MAX_FILE_BYTES:
            raise FormatError(f"{path}: larger than 2 GiB, which no ONNX file is: weights go to external data")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            structure = _without_weights(content, path)
    except OSError as e:
        raise FormatError(f"{path}: cannot be read: {e.strerror}") from e
    try:
        model = ModelProto.FromString(structure)
    except DecodeError as e:
        raise FormatError(f"{path}: not an ONNX model, or cut off: its protobuf does not parse") from e
    _check(path, model)
    if (bad := _not_text(model)) is not None:
        raise FormatError(f"{path}: a name in it is not text: {bad[:40]!r}")
    return model


def _not_text(message: Message) -> bytes | None:
    """The first string that is no UTF-8: protobuf hands those out as bytes."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else (value,)
        if field.type == field.TYPE_STRING:
            found = next((v for v in values if isinstance(v, bytes)), None)
        elif field.type == field.TYPE_MESSAGE:
            found = next((b for v in values if (b := _not_text(v)) is not None), None)
        else:
            continue
        if found is not None:
            return found
    return None


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operator set that *model* is written in."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _check(path: Path, model: ModelProto) -> None:
    if not model.HasField("graph") or not model.opset_import:
        raise FormatError(f"{path}: not an ONNX model: it has no {'graph' if model.opset_import else 'opset_import'}")
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if versions and max(versions) not in OPSETS:
        raise FormatError(
            f"{path}: uses operator set {max(versions)}; {OPSETS.start} to {OPSETS.stop - 1} are read: convert it with "
            "onnx.version_converter"
        )


def _without_weights(content: mmap.mmap, path: Path) -> bytes:
    try:
        kept = b"".join(_scan(content, 0, len(content), _MODEL, 0))
    except (IndexError, ValueError) as e:
        raise FormatError(f"{path}: not an ONNX model, or cut off: {e}") from e
    if len(kept) > MAX_STRUCTURE_BYTES:
        raise FormatError(f"{path}: {len(kept) >> 20} MiB without its weights, which no model needs")
    return kept


def _scan(content: mmap.mmap, at: int, end: int, message: int, depth: int) -> Iterator[bytes]:
    """The bytes of one message between *at* and *end* without large tensor data; small fields pass as they are."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    start = at  # of what passes as it is
    while at < end:
        field_at = at
        tag, at = _varint(content, at, end)
        wire = tag & 7
        if wire == 2:
            length, at = _varint(content, at, end)
            if length > end - at:
                raise ValueError(f"a field of {length} bytes ends after the file")
            inside = _INSIDE[message].get(tag >> 3)
            if length > KEPT_BYTES and (inside is not None or (message == _TENSOR and tag >> 3 in _DATA_FIELDS)):
                yield content[start:field_at]
                if inside is not None:
                    body = b"".join(_scan(content, at, at + length, inside, depth + 1))
                    yield _encoded(tag) + _encoded(len(body)) + body
                start = at + length
            at += length
        elif wire == 0:
            _, at = _varint(content, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {field_at}")
    if at != end:
        raise ValueError("a field ends after its message")
    yield content[start:end]


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends inside a field")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def producer_of(model: ModelProto) -> str:
    """Who wrote the file, with the version, as far as it says."""
    return f"{model.producer_name} {model.producer_version}".strip()[:200] or "unknown"


def reader_version() -> str:
    """The version of the onnx package."""
    return str(onnx.__version__)
