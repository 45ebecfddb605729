"""Chakra files byte by byte: the published schema, written down a second time, and a small rank."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from foretrace.traces.formats.chakra import ChakraNode, ChakraRank, NodeType


def published() -> tuple[Any, Any]:
    """GlobalMetadata and Node as MLCommons publishes them, written down here a second time."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="et_def.proto", package="ChakraProtoMsg", syntax="proto3")

    def message(name: str, *fields: tuple[int, str, Any, bool]) -> Any:
        made = file.message_type.add(name=name)
        for number, label, kind, repeated in fields:
            one = made.field.add(name=label, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                enum = kind == "NodeType"
                one.type, one.type_name = (14 if enum else 11), f".ChakraProtoMsg.{kind}"
            else:
                one.type = kind
        return made

    types = file.enum_type.add(name="NodeType")
    for number, name in enumerate("INVALID METADATA MEM_LOAD MEM_STORE COMP COMM_SEND COMM_RECV COMM_COLL".split()):
        types.value.add(name=f"{name}_NODE", number=number)
    kinds = "double float int32 int64 uint32 uint64 sint32 sint64 fixed32 fixed64 sfixed32 sfixed64 bool string bytes"
    fields: list[tuple[int, str, Any, bool]] = [(1, "name", field.TYPE_STRING, False)]
    for i, kind in enumerate(kinds.split()):
        type_ = getattr(field, f"TYPE_{kind.upper()}")
        message(f"{kind}List", (1, "values", type_, True))
        fields += [(3 + 2 * i, f"{kind}_val", type_, False), (4 + 2 * i, f"{kind}_list", f"{kind}List", False)]
    attribute = message("AttributeProto", *fields)
    attribute.oneof_decl.add(name="value")
    for one in attribute.field[1:]:
        one.oneof_index = 0
    message("IOInfo", *((i, n, field.TYPE_STRING, False) for i, n in enumerate(("values", "shapes", "types"), 1)))
    message("GlobalMetadata", (1, "version", field.TYPE_STRING, False), (2, "attr", "AttributeProto", True))
    u64 = field.TYPE_UINT64
    message(
        "Node",
        (1, "id", u64, False),
        (2, "name", field.TYPE_STRING, False),
        (3, "type", "NodeType", False),
        (4, "ctrl_deps", u64, True),
        (5, "data_deps", u64, True),
        (6, "start_time_micros", u64, False),
        (7, "duration_micros", u64, False),
        (8, "inputs", "IOInfo", False),
        (9, "outputs", "IOInfo", False),
        (10, "attr", "AttributeProto", True),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"ChakraProtoMsg.{n}") for n in ("GlobalMetadata", "Node"))
    head, node = (message_factory.GetMessageClass(d) for d in found)
    return head, node


HEAD, NODE = published()


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def messages(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(data):
        size, body = varint(data, at)
        found.append((at, data[body : body + size]))
        at = body + size
    return found


def framed(*bodies: bytes) -> bytes:
    data = bytearray()
    for body in bodies:
        size = len(body)
        while size > 127:
            data.append(size & 127 | 128)
            size >>= 7
        data.append(size)
        data += body
    return bytes(data)


def small(count: int = 4, number: int = 0) -> ChakraRank:
    nodes = []
    for i in range(count):
        said = {"is_cpu_op": i % 2 == 0, "num_ops": 64 * i, "tensor_size": 2**40, "stream": "compute", "op_id": i}
        deps = (i - 1,) if i else ()
        nodes.append(ChakraNode(i, f"aten.op{i}", NodeType.COMPUTE, deps, (), i * 2.5e-7, 2.5e-7, said))
    return ChakraRank(number, tuple(nodes), {"rank": number, "model": "mlp"})
