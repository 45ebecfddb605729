"""A replayed step as a Chakra trace: kernels and what the host issues as nodes that wait on each other.

Every node of the engine is one node here: what the host does a CPU operator, a kernel a computation or a collective.
Data dependencies are the graph's own, through views; control dependencies are the launch and the order on a stream.
So whoever keeps the dependencies alone, and the durations, comes to our time.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import VERSION, Graph, OpKind, UnknownNameError, evaluate_dims
from foretrace.traces.formats.chakra import ChakraNode, ChakraRank, NodeType, save_ranks

from .chakra_groups import Groups, communication, group_members
from .columns import Floats, Ints
from .engine import seconds_from_ticks
from .events import HOST_KIND, ONCE, description, input_shapes
from .lower import Program, Stream
from .table import OpTable

if TYPE_CHECKING:
    from .result import Result


def save_chakra_result(
    result: "Result",
    prefix: str | Path,
    ranks: Sequence[int] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write *result* as ``PREFIX.RANK.et`` and its groups as ``PREFIX.groups.json``; gives the files, all or none.

    *ranks* of a plan, by default one of each class of ranks that are alike. Raises `UnknownNameError` for a rank that
    is not there.
    """
    groups = Groups()
    return save_ranks(chakra_ranks(result, groups, ranks), groups.ranks, prefix, progress)


def chakra_ranks(result: "Result", groups: "Groups", ranks: Sequence[int] | None = None) -> Iterator[ChakraRank]:
    """The *ranks* of *result* one by one (see `save_chakra_result`); the groups they are in are added to *groups*."""
    if result.parallel is not None:
        from .chakra_plan import plan_ranks

        yield from plan_ranks(result, result.parallel, groups, ranks)
        return
    if list(ranks or [0]) != [0]:
        raise UnknownNameError("ranks", str(ranks), (), "one accelerator was replayed: give a plan")
    program, timeline = result.program, result.timeline
    start, duration = seconds_from_ticks(timeline.start), seconds_from_ticks(timeline.schedule.duration)
    nodes = RankNodes(OpFacts.joined(result.table.graph, (result.table,)), 0, groups)
    nodes.add_program(np.arange(result.table.ops), program, start, duration)
    yield ChakraRank(0, tuple(nodes.nodes), metadata(result, 0))


def metadata(result: "Result", rank: int) -> dict[str, Any]:
    """The attributes of a rank's whole file."""
    told = description(result)
    return {"foretrace": VERSION, **told, "rank": rank, "info": json.dumps(told["info"])}


@dataclass(frozen=True, eq=False)
class OpFacts:
    """What the nodes say of n ops."""

    graph: Graph
    flops: Sequence[int]
    """[n]"""
    moved: Sequence[int]
    """[n] bytes read and written."""
    shapes: Sequence[str]
    """[n] of inputs."""
    comm_bytes: Mapping[int, int]
    """Op id of a collective → bytes of its whole buffer."""

    @classmethod
    def joined(cls, graph: Graph, tables: Sequence[OpTable]) -> "OpFacts":
        """Those of the ops of *graph*, which are the ops of *tables* behind each other."""
        flops, moved, shapes, sizes = [], [], list[str](), list[float]()
        for table in tables:
            flops.append((table.matrix_flops + table.vector_flops + table.special_flops)[table.row])
            moved.append(table.bytes[table.row])
            of_row = input_shapes(table)
            shapes += [of_row[r] for r in table.row.tolist()]
            given = [op.attributes.get("bytes", 0) if op.kind is OpKind.COLLECTIVE else 0 for op in table.graph.ops]
            sizes += evaluate_dims(given, table.bindings).tolist()
        return cls(
            graph,
            np.rint(np.concatenate(flops)).astype(np.int64).tolist(),
            np.rint(np.concatenate(moved)).astype(np.int64).tolist(),
            shapes,
            {i: round(size) for i, size in enumerate(sizes) if graph.ops[i].kind is OpKind.COLLECTIVE},
        )


@dataclass(frozen=True, slots=True)
class Joins:
    """What a stretch of ops waits for beside itself: ids of nodes."""

    brought: tuple[int, ...] = ()
    """What its kernels read comes from these."""
    after: tuple[int, ...] = ()
    """No kernel begins before these have ended."""
    host_after: tuple[int, ...] = ()
    """The host issues nothing before these have ended."""


NOTHING: Final = Joins()


@dataclass(eq=False)
class RankNodes:
    """Collects the nodes of one rank, in the order in which its streams run them."""

    facts: OpFacts
    rank: int
    groups: Groups
    axes: Mapping[str, int] = field(default_factory=dict)
    """Ranks along an axis of the mesh, where an op that names the axis joins only two of them."""
    nodes: list[ChakraNode] = field(default_factory=list)
    _end_s: list[float] = field(default_factory=lambda: [0.0])
    """By id."""
    _last: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Stream → the nodes that its next one follows."""
    _made_by: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """(micro-batch, tensor) → the kernels that it comes from, through views."""

    def add_program(
        self,
        ops: Ints,
        program: Program,
        start_s: Floats | None,
        duration_s: Floats,
        micro_batch: int = 0,
        joins: Joins = NOTHING,
    ) -> tuple[int, ...]:
        """The nodes of *program*, whose op i is *ops*[i] of the graph; gives the last ones on the device.

        Without *start_s* each starts when what it waits for has ended.
        """
        run = _Stretch(self, program, micro_batch, joins)
        place = np.lexsort((program.on_device, program.op))
        starts = [None] * place.size if start_s is None else start_s[place].tolist()
        ids = [*ops.tolist(), -1]
        columns = [c[place].tolist() for c in (program.op, program.stream, duration_s)]
        done = 0
        for node, start, i, stream, duration in zip(place.tolist(), starts, *columns, strict=True):
            for view in ids[done : max(i, done)]:
                run.pass_on(view)
            done = max(i, done)
            if stream == Stream.HOST:
                run.host(node, i, ids[i], start, duration)
            else:
                run.kernel(node, i, ids[i], Stream(stream).name.lower(), start, duration)
                done = i + 1
        for view in ids[done:-1]:
            run.pass_on(view)
        return tuple(k for last in run.ends.values() for k in last)

    def gather_micro_batches(self, into: int) -> None:
        """What the micro-batches made is there as what *into* reads: gradients, for the optimizer."""
        for (micro_batch, t), ids in list(self._made_by.items()):
            if micro_batch != into:
                self._made_by[into, t] = ids

    def add(
        self,
        name: str,
        type_: NodeType,
        times: tuple[float | None, float],
        data: tuple[int, ...],
        control: tuple[int, ...],
        attributes: Mapping[str, Any],
        not_before_s: float = 0.0,
    ) -> int:
        """One node; *times* are its start, None: as soon as it can, and its duration. Gives its id."""
        number = len(self.nodes) + 1
        data = tuple(sorted(set(data)))
        control = tuple(sorted(set(control) - set(data)))
        start, duration = times
        if start is None:
            start = max(not_before_s, *(self._end_s[d] for d in (*data, *control)), 0.0)
        self._end_s.append(start + duration)
        self.nodes.append(ChakraNode(number, name, int(type_), data, control, start, duration, attributes))
        return number

    def add_communication(
        self,
        op_id: int,
        lane: str,
        times: tuple[float | None, float],
        data: tuple[int, ...],
        sorts: Sequence[tuple[NodeType, dict[str, Any]]],
        not_before_s: float = 0.0,
    ) -> tuple[int, ...]:
        """Communication that a plan adds: it follows the last node of its *lane*. Gives its ids."""
        name, before = self.facts.graph.ops[op_id].name, self._last.get(lane, ())
        self._last[lane] = tuple(
            self.add(name, type_, times, data, before, self.said(op_id, lane) | more, not_before_s)
            for type_, more in sorts
        )
        return self._last[lane]

    def said(self, op_id: int, lane: str) -> dict[str, Any]:
        """The attributes of a node on the device."""
        facts, op = self.facts, self.facts.graph.ops[op_id]
        return {
            "is_cpu_op": False,
            "num_ops": facts.flops[op_id],
            "tensor_size": facts.moved[op_id],
            "kind": str(op.kind),
            "module": op.module,
            "phase": op.phase,
            "shapes": facts.shapes[op_id],
            "op_id": op_id,
            "stream": lane,
        }

    def sorts(self, op_id: int) -> list[tuple[NodeType, dict[str, Any]]]:
        """What an op is in Chakra (see `communication`)."""
        op = self.facts.graph.ops[op_id]
        ranks = self.axes.get(str(op.attributes.get("group")))
        members = group_members({**op.attributes, "ranks": ranks} if ranks else op.attributes, self.rank)
        return communication(op, self.facts.comm_bytes.get(op_id, 0), self.rank, members, self.groups)


class _Stretch:
    """A program on its way into the nodes of a rank."""

    def __init__(self, rank: RankNodes, program: Program, micro_batch: int, joins: Joins) -> None:
        self.rank, self.micro_batch, self.joins = rank, micro_batch, joins
        self.one_queue = program.synchronous
        self.waits = _host_waits(program)
        self.made: dict[int, tuple[int, ...]] = {}
        self.launch: dict[int, tuple[int, ...]] = {}
        self.ends: dict[str, tuple[int, ...]] = {}
        self.issued = False

    def host(self, node: int, place: int, op_id: int, start: float | None, duration: float) -> None:
        """What the host does to issue an op, or once (*op_id* -1)."""
        facts = self.rank.facts
        op = facts.graph.ops[op_id] if op_id >= 0 else None
        control = tuple(i for kernel in self.waits.get(node, ()) for i in self.made.get(kernel, ()))
        control += () if self.issued else self.joins.host_after
        attributes = {"is_cpu_op": True, "num_ops": 0, "tensor_size": 0, "kind": HOST_KIND, "op_id": op_id}
        if op is not None:
            attributes |= {"module": op.module, "phase": op.phase, "shapes": facts.shapes[op_id]}
        attributes["stream"] = "host"
        before, name = self._before("host"), op.name if op else ONCE
        made = (self.rank.add(name, NodeType.COMPUTE, (start, duration), (), (*control, *before), attributes),)
        self.issued = True
        self._after("host", made)
        self.made[node] = self.launch[place] = made

    def kernel(self, node: int, place: int, op_id: int, lane: str, start: float | None, duration: float) -> None:
        """An op on the device."""
        rank, op = self.rank, self.rank.facts.graph.ops[op_id]
        data = tuple(k for t in op.inputs for k in rank._made_by.get((self.micro_batch, t), ()))
        control = (*self.launch.get(place, self.launch.get(-1, ())), *self._before(lane))
        if lane not in self.ends:
            data, control = (*data, *self.joins.brought), (*control, *self.joins.after)
        said = rank.said(op_id, lane)
        made = tuple(
            rank.add(op.name, type_, (start, duration), data, control, said | more) for type_, more in rank.sorts(op_id)
        )
        self._after(lane, made)
        self.made[node] = self.ends[lane] = made
        for t in op.outputs:
            rank._made_by[self.micro_batch, t] = made

    def pass_on(self, op_id: int) -> None:
        """An op without a kernel: a view comes from where its operands do, what the host makes from no kernel."""
        made_by, op = self.rank._made_by, self.rank.facts.graph.ops[op_id]
        reads = op.inputs if op.kind is OpKind.VIEW else ()
        came = tuple(sorted({k for t in reads for k in made_by.get((self.micro_batch, t), ())}))
        for t in op.outputs:
            made_by[self.micro_batch, t] = came

    def _before(self, lane: str) -> tuple[int, ...]:
        return self.rank._last.get("host" if self.one_queue else lane, ())

    def _after(self, lane: str, made: tuple[int, ...]) -> None:
        self.rank._last["host" if self.one_queue else lane] = made


def _host_waits(program: Program) -> dict[int, list[int]]:
    """Host node → the kernels that it waits for (reading a value)."""
    some = np.flatnonzero((program.stream[program.target] == Stream.HOST) & program.on_device[program.source])
    found: dict[int, list[int]] = {}
    for source, target in zip(program.source[some].tolist(), program.target[some].tolist(), strict=True):
        found.setdefault(target, []).append(source)
    return found
