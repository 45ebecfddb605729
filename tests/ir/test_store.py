import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import graphs, small_graph

from foretrace.ir import (
    DTYPES,
    FormatError,
    Graph,
    GraphError,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    Work,
    find_blocks,
    graph_pb2,
    load_graph,
    op_work,
    parse_text,
    print_text,
    save_graph,
    symbol,
    verify,
)
from foretrace.ir.store import HEADER, MAGIC, MAX_ITEMS, decode_graph, encode_graph

GOLDEN = Path(__file__).parent / "golden"


def wrap(payload: bytes, container: int = 1, size: int | None = None, crc: int | None = None) -> bytes:
    size = len(payload) if size is None else size
    crc = zlib.crc32(payload) if crc is None else crc
    return HEADER.pack(MAGIC, container, size, crc) + zlib.compress(payload)


def message(**fields) -> bytes:
    return graph_pb2.Graph(**{"version": 1, "phase": "forward", **fields}).SerializeToString()


def test_golden_v1_file_stays_readable(tmp_path):
    """small-v1.graph was written by version 1 of the format: never regenerate it, add a v2 beside it."""
    graph = load_graph(GOLDEN / "small-v1.graph")
    assert graph == small_graph()
    assert print_text(graph) == (GOLDEN / "small.txt").read_text(encoding="utf-8")
    save_graph(graph, tmp_path / "again.graph")
    assert load_graph(tmp_path / "again.graph") == graph


@given(graphs())
def test_protobuf_round_trip_is_the_identity(graph):
    data = encode_graph(verify(graph))
    again = verify(decode_graph(data))
    assert print_text(again) == print_text(graph)
    assert again == graph or "nan" in print_text(graph)
    assert encode_graph(again) == data


@given(graphs())
def test_equal_graphs_give_equal_bytes(graph):
    def turned(mapping):
        return dict(reversed(mapping.items()))

    ops = tuple(
        Op(o.kind, o.name, o.inputs, o.outputs, turned(o.attributes), o.module, o.phase, o.work) for o in graph.ops
    )
    same = Graph(graph.name, graph.phase, turned(graph.symbols), graph.tensors, ops, turned(graph.metadata))
    assert encode_graph(same) == encode_graph(graph) == encode_graph(parse_text(print_text(graph)))


def test_graph_without_anything(tmp_path):
    graph = Graph("", "train", {}, (), ())
    save_graph(graph, tmp_path / "empty.graph")
    assert load_graph(tmp_path / "empty.graph") == graph


def test_decoded_ops_do_not_share_their_attribute_dicts():
    a, b = (op.attributes for op in decode_graph(encode_graph(small_graph())).ops[2::3])
    assert a == b
    assert a is not b


# What is no graph file.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a Foretrace graph file .*foretrace capture MODEL -o FILE"),
        (b"PK\x03\x04 something else entirely", "not a Foretrace graph file"),
        (MAGIC, "cut off"),
        (wrap(message(), container=2), r"newer Foretrace \(container version 2, this one reads 1\)"),
        (wrap(message(version=7)), r"newer Foretrace \(schema version 7, this one reads 1\)"),
        (wrap(message(), container=0), "container version is 0"),
        (wrap(b""), "schema version is 0"),
        (wrap(message(), size=1 << 60), "claims 1152921504606846976 bytes of graph, more than the"),
        (wrap(message(), size=1 << 20), "claims 1048576 bytes of graph, more than the"),
        (wrap(message(), size=1000), "cut off"),
        (wrap(message(), size=1), "longer than its header says"),
        (wrap(message()) + b"x", "longer than its header says"),
        (wrap(message(), crc=0), "checksum does not match"),
        (wrap(b"\xff" * 40), "its protobuf does not parse"),
        (wrap(message())[:-4], "cut off"),
        (wrap(message())[: HEADER.size] + b"not deflated", "does not inflate"),
        (wrap(message(tensors=[{"name": 3}])), "a name beyond its 0 strings"),
        (wrap(message(strings=["x"], tensors=[{"dtype": 0}])), "corrupt: unknown dtype 'x'"),
        (wrap(message(strings=["float32", "x"], tensors=[{"role": 1}])), "'x' is not a valid Role"),
        (wrap(message(strings=["float32"], tensors=[{"shape": [-1]}])), "a size beyond its 0 expressions"),
        (wrap(message(strings=["float32"], tensors=[{"shape": [-(1 << 63)]}])), "a size beyond its 0 expressions"),
        (wrap(message(dims=["mod(a, 0)"])), "divided by zero"),
        (wrap(message(strings=["matmulx"], ops=[{"work": [0] * 5}])), "'matmulx' is not a valid OpKind"),
        (wrap(message(strings=["view"], ops=[{"work": [0] * 4}])), "work has five entries, got 4"),
        (wrap(message(strings=["view"], ops=[{"work": [0] * 5, "attributes": [0]}])), "an attribute without a value"),
        (wrap(message(strings=["view", "]"], ops=[{"work": [0] * 5, "attributes": [0, 1]}])), "corrupt|cannot read"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_refused_with_a_reason(data, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        decode_graph(data)
    path = tmp_path / "bad.graph"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        load_graph(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"b": "x", "m": 1 << 40, "n": 1, "k": 1}, "the attribute b is a size, got 'x'"),
        ({"b": (1,), "m": 1 << 40, "n": 1, "k": 1}, r"the attribute b is a size, got \(1,\)"),
        ({"b": None, "m": 1, "n": 1, "k": 1}, "the attribute b is a size, got None"),
    ],
)
def test_hostile_geometry_is_refused_on_load(tmp_path, attributes, message):
    """Multiplied unchecked these would fill the memory."""
    tensors = tuple(Tensor("t", (2, 2), DTYPES["float32"], Role.INPUT, i) for i in range(2))
    op = Op(OpKind.MATMUL, "mm", (0,), (1,), attributes)
    path = tmp_path / "bad.graph"
    path.write_bytes(encode_graph(Graph("bad", "forward", {}, tensors, (op,))))
    with pytest.raises(FormatError, match=message):
        load_graph(path)


def test_every_truncation_is_refused():
    data = encode_graph(small_graph())
    for n in range(len(data)):
        with pytest.raises(FormatError):
            decode_graph(data[:n])


def test_every_bit_flip_is_refused():
    data = encode_graph(small_graph())
    for n in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[n] ^= 1 << bit
            try:
                graph = decode_graph(bytes(flipped))
            except FormatError:
                continue
            assert graph == small_graph()  # a bit that deflate does not read


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    for bad in (data, MAGIC + data, HEADER.pack(MAGIC, 1, len(data), 0) + data):
        with pytest.raises(FormatError):
            decode_graph(bad)


@given(graphs(max_ops=3), st.randoms(use_true_random=False))
def test_damaged_payloads_give_a_graph_or_a_clear_error(graph, random: random.Random):
    """The checksum is right, so the damage reaches protobuf, the tables and verify."""
    payload = bytearray(zlib.decompress(encode_graph(graph)[HEADER.size :]))
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(payload))
        payload[at : at + random.choice([0, 1, 1, 5])] = random.randbytes(random.choice([0, 1, 1, 3]))
    try:
        again = decode_graph(wrap(bytes(payload)))
    except FormatError:
        return
    try:
        verify(again)
    except GraphError:
        return
    assert verify(decode_graph(encode_graph(again)))


@pytest.mark.parametrize("field", [b"\x32\x00", b"\x3a\x00", b"\x42\x00", b"\x4a\x00"])
def test_bombs_of_empty_messages_are_refused_before_they_are_inflated(field):
    bomb = wrap(b"\x08\x01" + field * (10 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more than the"):
            decode_graph(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # inflated it is 20 MiB, as messages gigabytes


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read .*gone\.graph: No such file"):
        load_graph(tmp_path / "gone.graph")
    with pytest.raises(FormatError, match=r"cannot read .*: Is a directory"):
        load_graph(tmp_path)
    with pytest.raises(FormatError, match="cannot read"):
        load_graph("a\0b")


# What cannot be written.


def _one_tensor(**fields) -> Tensor:
    return Tensor(**{"name": "x", "shape": (2,), "dtype": DTYPES["int8"], "role": Role.INPUT, "storage": 0, **fields})


@pytest.mark.parametrize(
    "graph",
    [
        Graph("\ud800", "forward", {}, (), ()),
        Graph("g", "forward", {}, (_one_tensor(storage=-1),), ()),
        Graph("g", "forward", {}, (_one_tensor(name="\ud800"),), ()),
        Graph("g", "forward", {}, (), (Op(OpKind.VIEW, "v", (-1,), ()),)),
        Graph("g", "forward", {}, (), (Op(OpKind.VIEW, "v", (), (), {"a": object()}),)),
        Graph("g", "forward", {}, (), (Op(OpKind.VIEW, "v", (), (), {"a": "\ud800"}),)),
        Graph("g", "forward", {}, (), (), {"a": 1}),
    ],
)
def test_what_cannot_be_written_is_a_graph_error_and_no_file(graph, tmp_path):
    with pytest.raises(GraphError):
        encode_graph(graph)
    with pytest.raises(GraphError):
        save_graph(graph, tmp_path / "x.graph")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_graph_is_not_saved(tmp_path):
    graph = Graph("g", "forward", {}, (_one_tensor(),), (Op(OpKind.VIEW, "v", (5,), ()),))
    with pytest.raises(GraphError, match="dangling"):
        save_graph(graph, tmp_path / "x.graph")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("foretrace.ir.store.MAX_PAYLOAD_BYTES", 100)
    with pytest.raises(GraphError, match=rf"too large to write: 6 ops, \d+ bytes, of at most {MAX_ITEMS} and 100"):
        encode_graph(small_graph())


def test_numbers_beyond_64_bits(tmp_path):
    work = Work(1 << 70, (1 << 62) - 1, 1 << 62, symbol("n") * (1 << 80), 0)
    op = Op(OpKind.OTHER, "x", (0,), (), {"big": 1 << 90, "small": -(1 << 90)}, work=work)
    graph = Graph("g", "forward", {"n": Symbol("n", maximum=1 << 62)}, (_one_tensor(shape=(1 << 65,)),), (op,))
    save_graph(graph, tmp_path / "g")
    assert load_graph(tmp_path / "g") == graph


# Speed.


def large_graph(n_ops: int) -> Graph:
    """Layers of norm, projection, view, activation over (batch, seq)."""
    tokens, bf16 = symbol("batch") * symbol("seq"), DTYPES["bfloat16"]
    tensors = [Tensor("x", (tokens, 4096), bf16, Role.INPUT, 0)]
    ops: list[Op] = []
    x, layer = 0, 0
    while len(ops) < n_ops:
        for kind, name in (("norm", "rms_norm"), ("view", "t"), ("matmul", "mm"), ("elementwise", "gelu")):
            module = f"model.layers.{layer}.{name}"
            w = len(tensors)
            weight = Tensor(f"{module}.weight", (4096, 4096) if kind == "matmul" else (4096,), bf16, Role.PARAMETER, w)
            tensors += [weight, Tensor("", (tokens, 4096), bf16, Role.ACTIVATION, w + 1)]
            geometry = {"b": 1, "m": tokens, "n": 4096, "k": 4096} if kind == "matmul" else {"eps": 1e-5}
            work = op_work(OpKind(kind), name, geometry, [tensors[x], weight], [tensors[-1]])
            ops.append(Op(OpKind(kind), f"aten.{name}", (x, w), (w + 1,), geometry, module, "forward", work))
            x = w + 1
        layer += 1
    symbols = {"batch": Symbol("batch"), "seq": Symbol("seq", 128)}
    return Graph("large", "forward", symbols, tuple(tensors), tuple(ops[:n_ops]))


def test_speed_of_10_000_ops(tmp_path, capsys):
    graph = large_graph(10_000)
    path = tmp_path / "large.graph"
    seconds = {}
    for name, run in {
        "verify": lambda: verify(graph),
        "save": lambda: save_graph(graph, path),
        "load": lambda: load_graph(path),
        "find_blocks": lambda: find_blocks(graph),
    }.items():
        begin = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - begin
    assert load_graph(path) == graph
    size = struct.unpack_from("<Q", path.read_bytes(), 12)[0]
    with capsys.disabled():
        shown = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in seconds.items())
        print(f"\n10 000 ops: {shown}; {path.stat().st_size} bytes, {size} inflated")
