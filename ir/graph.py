"""Graph, Op, Tensor: what one rank of a model computes, in program order, with symbolic shapes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from .dim import Dim, DimLike, Shape, evaluate_dim, prod
from .dtype import DType
from .errors import GraphError, UnknownNameError


class Role(StrEnum):
    """What a tensor is to the model; memory is reported by it."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    KV_CACHE = "kv_cache"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    OPTIMIZER_STATE = "optimizer_state"
    OUTPUT = "output"


RESIDENT_ROLES = frozenset({Role.INPUT, Role.PARAMETER, Role.BUFFER, Role.KV_CACHE, Role.OPTIMIZER_STATE})
"""Roles a tensor may have without an op that produces it: it is there before the step begins."""


class OpKind(StrEnum):
    """The closed set of kinds that cost models understand; `OTHER` is priced by its bytes and reported."""

    MATMUL = "matmul"
    GROUPED_MATMUL = "grouped_matmul"
    ATTENTION = "attention"
    CONVOLUTION = "convolution"
    NORM = "norm"
    SOFTMAX = "softmax"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    EMBEDDING = "embedding"
    GATHER_SCATTER = "gather_scatter"
    SCAN = "scan"
    SORT = "sort"
    COLLECTIVE = "collective"
    COPY = "copy"
    VIEW = "view"
    HOST = "host"
    OTHER = "other"


MATRIX_KINDS = frozenset({OpKind.MATMUL, OpKind.GROUPED_MATMUL, OpKind.ATTENTION, OpKind.CONVOLUTION})
"""Kinds whose FLOPs run on matrix units; `inspect` and MFU count these."""
FREE_KINDS = frozenset({OpKind.VIEW, OpKind.HOST})
"""Kinds that start no work on the accelerator."""

AttributeValue = Any
"""None, bool, int, float, str, `Dim`, or a tuple of these."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named size a graph leaves open: its default, the least value it was captured for, and what it means."""

    name: str
    default: int = 1
    minimum: int = 1
    maximum: int | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One value: name, shape, number format, role; `storage` is equal for tensors that share memory (views)."""

    name: str
    shape: Shape
    dtype: DType
    role: Role
    storage: int

    @property
    def elements(self) -> DimLike:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> DimLike:
        """Storage size in bytes; formats under a byte are packed."""
        bits = self.elements * self.dtype.bits
        return bits // 8 if self.dtype.bits % 8 == 0 else (bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Work:
    """What one op must do at least: FLOPs by the unit that does them, bytes read and written."""

    matrix_flops: DimLike = 0
    vector_flops: DimLike = 0
    special_flops: DimLike = 0
    bytes_read: DimLike = 0
    bytes_written: DimLike = 0

    @property
    def bytes(self) -> DimLike:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: a kind, the framework's own name, tensor ids in and out, attributes, place in the model, work.

    Attributes hold the operator's literal arguments and the geometry its kind's cost model reads
    (see `ir.work`): ``b m n k`` for matmul, ``batch heads kv_heads q_len kv_len head_dim v_dim`` for attention.
    """

    kind: OpKind
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    module: str = ""
    phase: str = "forward"
    work: Work = NO_WORK


@dataclass(frozen=True)
class Graph:
    """Operators in an order they can run in, over tensors named by their position in `tensors`.

    `phase` is what was captured (forward, prefill, decode, train); `metadata` says where the graph came from.
    Graphs are immutable: a transform returns a new one.
    """

    name: str
    phase: str
    symbols: Mapping[str, Symbol]
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[int, int]:
        """Tensor id → id of the op that produces it."""
        return {t: i for i, op in enumerate(self.ops) for t in op.outputs}

    @cached_property
    def predecessors(self) -> list[list[int]]:
        """For each op the ids of the ops whose outputs it reads, ascending."""
        made_by = self.producers
        return [sorted({made_by[t] for t in op.inputs if t in made_by}) for op in self.ops]

    @cached_property
    def formats(self) -> list[int]:
        """For each tensor a code of its shape and dtype; equal ones have the same."""
        codes: dict[Hashable, int] = {}
        return [codes.setdefault((t.shape, t.dtype.name), len(codes)) for t in self.tensors]

    @cached_property
    def op_codes(self) -> list[int]:
        """For each op a code: where it is the same, so are kind, name, attributes, work and the formats touched."""
        formats = self.formats
        works: dict[int, int] = {}  # many ops share one object, and to hash what is in it takes longer
        of_work: dict[Work, int] = {}
        known: dict[Hashable, int] = {}
        codes = []
        for op in self.ops:
            work = works.get(id(op.work), -1)
            if work < 0:
                work = works[id(op.work)] = of_work.setdefault(op.work, len(of_work))
            inputs, outputs = tuple([formats[t] for t in op.inputs]), tuple([formats[t] for t in op.outputs])
            key = (op.kind, op.name, work, tuple(op.attributes.items()), inputs, outputs)
            codes.append(known.setdefault(key, len(known)))
        return codes

    def with_role(self, role: Role) -> list[Tensor]:
        """Tensors of one role that own their storage (the first of each storage)."""
        seen: dict[int, Tensor] = {}
        for tensor in self.tensors:
            if tensor.role is role:
                seen.setdefault(tensor.storage, tensor)
        return list(seen.values())

    @property
    def parameter_count(self) -> int:
        """Number of distinct parameters; tied ones count once."""
        return _constant(sum((t.elements for t in self.with_role(Role.PARAMETER)), 0))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of distinct parameters."""
        return _constant(sum((t.bytes for t in self.with_role(Role.PARAMETER)), 0))

    def flops(self, bindings: Mapping[str, int], kinds: Iterable[OpKind] = MATRIX_KINDS) -> int:
        """FLOPs of the matrix work of ops of *kinds* at the bound sizes, exact."""
        wanted = frozenset(kinds)
        total: dict[DimLike, int] = {}
        for op in self.ops:
            if op.kind in wanted:
                total[op.work.matrix_flops] = total.get(op.work.matrix_flops, 0) + 1
        return int(sum(evaluate_dim(d, bindings) * n for d, n in total.items()))

    def bind(self, given: Mapping[str, int | None]) -> dict[str, int]:
        """A value for every symbol: *given* ones first, defaults for the rest.

        Raises `UnknownNameError` for a name that is no symbol of this graph, `GraphError` for a value outside
        what the graph was captured for.
        """
        values = {name: s.default for name, s in self.symbols.items()}
        for name, value in given.items():
            if value is None:
                continue
            if name not in self.symbols:
                fixed = self.metadata.get(f"fixed.{name}")
                if fixed == str(value):
                    continue
                raise UnknownNameError(
                    "symbol",
                    name,
                    self.symbols,
                    f"this graph was captured with {name}={fixed}; capture it again with {_flag(name, value)}"
                    if fixed
                    else f"graph {self.name} leaves open: {', '.join(self.symbols) or 'nothing'}",
                )
            s = self.symbols[name]
            if value < s.minimum or (s.maximum is not None and value > s.maximum):
                most = "" if s.maximum is None else f" and at most {s.maximum}"
                again = f"; capture it again with {name}={value}" if value > 0 else ""
                raise GraphError(
                    f"{name}={value}: this graph was captured for {name} of at least {s.minimum}{most}{again}"
                )
            values[name] = value
        return values


def _flag(name: str, value: int) -> str:
    """How a person gives a size: the common ones have flags of their own, an ONNX file's dims do not."""
    return f"--{name} {value}" if name in ("batch", "seq", "context") else f"--dim {name}={value}"


def _constant(value: DimLike) -> int:
    if isinstance(value, Dim):
        raise GraphError(f"a parameter's size depends on a symbol: {value}")
    return value
