"""The fields of a hardware description, each with its unit and meaning. In memory all is SI.

A YAML key is the field's name less its unit suffix (`clock_hz` is written ``clock: 1.755 GHz``). A field
that is None is not published (or does not exist on that device); nothing is guessed in its place.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from foretrace.ir.dtype import DTYPES, DType, parse_dtype
from foretrace.ir.errors import UnknownNameError

from .quantity import DIMENSIONS, QuantityError, parse_quantity, quoted


def complaint(why: str, *at: str) -> PydanticCustomError:
    """The error that says *why* of the key path *at*, below the part that a validator checks."""
    return PydanticCustomError("hardware", "{why}", {"why": why, "at": at})


@dataclass(frozen=True)
class Unit:
    """Marks a float field as a quantity of *dimension*: text is parsed, a bare number is refused.

    Python code that validates with ``context={"si": True}`` may pass SI numbers.
    """

    dimension: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Parse before the number is checked."""
        return core_schema.with_info_before_validator_function(self.parse, handler(source))

    def parse(self, value: Any, info: ValidationInfo) -> Any:
        """The SI number of *value*."""
        if isinstance(value, str):
            try:
                return parse_quantity(value, self.dimension)
            except QuantityError as error:
                raise complaint(str(error)) from None
        if info.context and info.context.get("si"):
            return value
        raise complaint(f'expected e.g. "{DIMENSIONS[self.dimension].example}", got {quoted(value)}')


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise complaint(f"expected printable text on one line, got {quoted(text)}")
    return text


Count: TypeAlias = Annotated[int, Field(gt=0, le=10**9, strict=True)]
Place: TypeAlias = Annotated[int, Field(ge=0, le=10**9, strict=True)]
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000, strict=True), AfterValidator(_one_line)]
Bandwidth: TypeAlias = Annotated[float, Unit("bandwidth"), Field(gt=0, allow_inf_nan=False)]
Bytes: TypeAlias = Annotated[float, Unit("size"), Field(gt=0, allow_inf_nan=False)]
EnergyPerFlop: TypeAlias = Annotated[float, Unit("energy of work"), Field(gt=0, allow_inf_nan=False)]
Hertz: TypeAlias = Annotated[float, Unit("frequency"), Field(gt=0, allow_inf_nan=False)]
Rate: TypeAlias = Annotated[float, Unit("compute rate"), Field(gt=0, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Unit("time"), Field(gt=0, allow_inf_nan=False)]
Watts: TypeAlias = Annotated[float, Unit("power"), Field(gt=0, allow_inf_nan=False)]


def _dtype_name(written: str) -> str:
    try:
        return parse_dtype(written).name
    except UnknownNameError as error:
        raise complaint(str(error)) from None


DTypeName: TypeAlias = Annotated[str, AfterValidator(_dtype_name)]
_SUFFIX: Final = re.compile(r"_(s|hz|bytes|w)$")


class Part(BaseModel):
    """What every part of a description shares: frozen, no unknown keys, names less their unit suffix."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_alias=True,
        validate_by_name=False,
        alias_generator=lambda name: _SUFFIX.sub("", name),
    )


class Memory(Part):
    """The memory that tensors live in."""

    capacity_bytes: Bytes = Field(
        description="bytes; the chip's memory, read as GiB where the vendor writes GB (that is what devices report)"
    )
    usable_bytes: Bytes | None = Field(
        None, description="bytes that the driver reports as the device's total, where recorded from a device"
    )
    bandwidth: Bandwidth = Field(description="bytes/s between memory and chip, peak, as published")
    technology: Text | None = Field(None, description="memory type: HBM3, GDDR6, DDR4...")

    @property
    def available_bytes(self) -> float:
        """Bytes that a process may hope for: `usable_bytes` where recorded, else the whole capacity."""
        return self.usable_bytes or self.capacity_bytes


class Cache(Part):
    """The last cache that all cores share, in front of the memory."""

    level: Text = Field("L2", description="what the vendor calls it: L2, L3, Infinity Cache...")
    capacity_bytes: Bytes = Field(description="bytes, all slices together")
    bandwidth: Bandwidth | None = Field(
        None,
        description="bytes/s read by all cores together: peak, or what a benchmark reached (the source says)",
    )


class Compute(Part):
    """Peak rates by dtype, dense (no sparsity), for the whole accelerator."""

    matrix: dict[str, Rate] = Field(
        default_factory=dict,
        description="FLOP/s (OP/s for integers) of the matrix units by input dtype, dense; absent: no such unit",
    )
    vector: dict[str, Rate] = Field(
        default_factory=dict, description="FLOP/s of the ordinary (SIMT or SIMD) units by dtype, FMA as two"
    )
    special_per_clock: float | None = Field(
        None,
        gt=0,
        strict=True,
        allow_inf_nan=False,
        description="exponentials per clock per core (special-function units)",
    )
    energy_per_flop: dict[str, EnergyPerFlop] = Field(
        default_factory=dict,
        description="J per FLOP (per OP for integers) by input dtype, on the units that run its matmuls, with the "
        "movement of operands on the chip; absent: not known",
    )
    emulated_with: dict[str, DTypeName] = Field(
        default_factory=dict,
        description="dtype without units of its own -> the dtype whose units run it (after conversion)",
    )

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        """`fp8: null` or `matrix: null` takes a base's figures away."""
        if not isinstance(value, dict):
            return value
        return {
            key: {k: v for k, v in inner.items() if v is not None} if isinstance(inner, dict) else inner
            for key, inner in value.items()
            if inner is not None
        }

    @model_validator(mode="after")
    def _known(self) -> "Compute":
        for name in (*self.matrix, *self.vector, *self.energy_per_flop, *self.emulated_with):
            _dtype_name(name)
        return self


TOPOLOGIES: TypeAlias = Literal[
    "switch", "mesh", "full-mesh", "cube-mesh", "ring", "torus", "torus-2d", "torus-3d", "point-to-point", "tree",
    "fat-tree", "rail", "dragonfly", "custom",
]  # fmt: skip


class Link(Part):
    """One tier of links, seen from one accelerator."""

    technology: Text | None = Field(None, description="link type: NVLink 4, PCIe 5.0 x16, InfiniBand NDR...")
    bandwidth: Bandwidth = Field(description="bytes/s per accelerator in one direction, all its links together")
    latency_s: Seconds | None = Field(None, description="s from one end to the other for an empty message")
    topology: TOPOLOGIES | None = Field(None, description="how the accelerators (scale-out: the nodes) are joined")
    reduces: bool = Field(False, strict=True, description="true where the switch adds (all-reduce in the network)")
    dims: tuple[Count, ...] | None = Field(
        None, min_length=1, max_length=3, description="places along each dimension of a torus; absent: as square"
    )
    oversubscription: float = Field(
        1.0,
        ge=1,
        allow_inf_nan=False,
        description="bandwidth into a leaf switch (or dragonfly group) over that out of it; 1: nothing is blocked",
    )
    nics_per_node: Count | None = Field(
        None, description="NICs that a node's accelerators share, each of `bandwidth` (scale-out); absent: one for each"
    )
    group_size: Count | None = Field(
        None,
        description="nodes (in a node: accelerators) below a leaf switch or in a dragonfly group; absent: 1",
    )
    links: tuple[tuple[Place, Place, Bandwidth], ...] | None = Field(
        None, min_length=1, description="a custom network: [place, place, bandwidth each way], places from 0"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """``full-mesh`` is what a mesh is; listed links are the topology, whatever a base says."""
        if not isinstance(value, dict):
            return value
        named = {"full-mesh": "mesh"}.get(str(value.get("topology")), value.get("topology"))
        return value | {"topology": "custom" if value.get("links") else named}

    @model_validator(mode="after")
    def _of_its_topology(self) -> "Link":
        """A field that its topology does not read is a mistake."""
        for name, read_by in _READ_BY.items():
            if getattr(self, name) not in (None, 1.0) and self.topology not in read_by:
                raise complaint(f"topology {self.topology or 'switch'} has none: expected {_either(read_by)}", name)
        dimensions = {"torus-2d": 2, "torus-3d": 3, "ring": 1}.get(self.topology or "")
        if self.dims is not None and dimensions not in (None, len(self.dims)):
            raise complaint(f"expected {dimensions} for {self.topology}, got {len(self.dims)}", "dims")
        if self.topology == "custom" and self.links is None:
            raise complaint('missing: topology custom lists them, e.g. [[0, 1, "50 GB/s"], [1, 2, "50 GB/s"]]', "links")
        return self


_READ_BY: Final = MappingProxyType(
    {
        "dims": ("torus", "torus-2d", "torus-3d", "ring"),
        "oversubscription": ("fat-tree", "rail", "dragonfly"),
        "group_size": ("fat-tree", "rail", "dragonfly"),
        "links": ("custom",),
    }
)
"""Fields of a `Link` that only some topologies read."""


def _either(names: tuple[str, ...]) -> str:
    return f"topology: {', '.join(names[:-1])} or {names[-1]}" if names[1:] else f"topology: {names[0]}"


class Links(Part):
    """The tiers, nearest first. A tier that is absent does not exist."""

    on_package: Link | None = Field(None, description="between the dies of one package")
    scale_up: Link | None = Field(None, description="between the accelerators of a node (NVLink, Infinity Fabric, ICI)")
    pcie: Link | None = Field(None, description="to the host, and to other accelerators where nothing nearer exists")
    scale_out: Link | None = Field(None, description="between nodes (InfiniBand, Ethernet), the accelerator's share")

    @model_validator(mode="after")
    def _ways_out(self) -> "Links":
        """Only a node has NICs."""
        for name, link in self.tiers().items():
            if link.nics_per_node is not None and name != "scale-out":
                raise complaint("only scale_out has NICs", name.replace("-", "_"), "nics_per_node")
        return self

    def tiers(self) -> dict[str, Link]:
        """The tiers that exist by their names (``on-package``, ``scale-up``, ``pcie``, ``scale-out``)."""
        found = {name.replace("_", "-"): getattr(self, name) for name in type(self).model_fields}
        return {name: link for name, link in found.items() if link is not None}


class Described(Part):
    """What accelerators, hosts and systems have in common."""

    name: Text = Field(description="the name it is asked for by; a file's own name where it states none")
    title: Text | None = Field(None, description="the vendor's name of it")
    lineage: tuple[Text, ...] = Field(
        (), description="what it was made from by `extends`, nearest first (written by the loader)"
    )
    sources: dict[Text, Text] = Field(
        default_factory=dict,
        description='field path or section -> where its figures come from, "not published", or "estimate: ..."',
    )

    @property
    def extends(self) -> str | None:
        """The name of what this was made from; None where it stands by itself."""
        return self.lineage[0] if self.lineage else None

    def source(self, path: str) -> str | None:
        """The source of the field at dotted *path*: that of its longest stated prefix."""
        while path not in self.sources:
            path, dot, _ = path.rpartition(".")
            if not dot:
                return None
        return self.sources[path]


class Accelerator(Described):
    """One device that runs operators: a GPU (one die, where a package shows several), a TPU core, a CPU."""

    aliases: tuple[Text, ...] = Field((), description="other names it answers to, any case")
    kind: Literal["gpu", "tpu", "npu", "cpu"] = Field(description="gpu, tpu, npu or cpu")
    vendor: Text = Field(description="who makes it")
    measured: bool = Field(
        False,
        strict=True,
        description="true where rates and bandwidth are what a benchmark reached, not published peaks",
    )
    generation: Text = Field(description="pipeline generation: volta, ampere, hopper, cdna3, tpu-v5e, x86...")
    resembles: Text | None = Field(
        None, description="the generation whose measured constants to use where this one has none"
    )
    cores: Count = Field(description="count of SMs, compute units, TensorCores or CPU cores in use")
    clock_hz: Hertz = Field(
        description="Hz that the cores hold in a kernel below the power limit; matrix peaks are quoted at it"
    )
    vector_clock_hz: Hertz | None = Field(
        None, description="Hz at which the vendor quotes vector peaks; absent: the same clock"
    )
    compute: Compute = Field(description="peak rates")
    memory: Memory = Field(description="the device memory")
    cache: Cache | None = Field(None, description="the shared cache")
    launch_floor_s: Seconds = Field(description="s that the shortest kernel (or CPU operator) takes on the device")
    tdp_w: Watts | None = Field(None, description="W, board or package power limit")
    node_size: Count = Field(1, description="accelerators in one node (scale-up domain) of the usual platform")
    links: Links = Field(default_factory=lambda: Links.model_validate({}), description="link tiers, seen from one")

    @property
    def synchronous(self) -> bool:
        """True where the host is the device: an operator blocks the thread that issues it."""
        return self.kind == "cpu"

    @property
    def cost_generation(self) -> str:
        """The generation whose measured constants apply: `resembles`, else `generation`."""
        return self.resembles or self.generation

    @property
    def special_rate(self) -> float | None:
        """Exponentials per second of the whole accelerator; None where not published."""
        per_clock = self.compute.special_per_clock
        return None if per_clock is None else per_clock * self.cores * (self.vector_clock_hz or self.clock_hz)

    def matrix_flops(self, dtype: DType) -> float | None:
        """Peak FLOP/s of the matrix units on *dtype* inputs, dense; None where they do not take it."""
        return _rate(self.compute.matrix, dtype)

    def energy_per_flop(self, dtype: DType) -> float | None:
        """J that one FLOP on *dtype* takes on the chip; None where not known."""
        return _rate(self.compute.energy_per_flop, dtype)

    def vector_flops(self, dtype: DType) -> float | None:
        """Peak FLOP/s of the ordinary units on *dtype*; None where it is not a format of theirs."""
        return _rate(self.compute.vector, dtype)

    def emulated_with(self, dtype: DType) -> DType | None:
        """The dtype whose units run *dtype* after conversion, where *dtype* has none of its own."""
        table = self.compute.emulated_with
        name = table.get(dtype.name, table.get(_SAME_UNITS.get(dtype.name, "")))
        return DTYPES[name] if name else None

    @model_validator(mode="after")
    def _computes(self) -> "Accelerator":
        if not (self.compute.matrix or self.compute.vector):
            raise complaint('no peak at all: expected e.g. vector: {float32: "19.5 TFLOP/s"}', "compute")
        usable = self.memory.usable_bytes
        if usable is not None and usable > self.memory.capacity_bytes:
            raise complaint("more than memory.capacity", "memory", "usable")
        return self


class Host(Described):
    """The computer that issues work to the accelerators of one node."""

    kind: Literal["host"] = Field("host", description="says that the file describes a host")
    cores: Count = Field(description="count of CPU cores")
    clock_hz: Hertz = Field(description="Hz that one busy core holds")
    memory_bandwidth: Bandwidth = Field(description="bytes/s of the host's memory, peak")
    dispatch_s: Seconds = Field(description="s that the host spends to issue one operator in eager PyTorch")
    launch_s: Seconds = Field(description="s that the host spends to launch one more kernel of that operator")
    graph_launch_s: Seconds = Field(description="s that the host spends to launch one captured graph")
    pcie: Link | None = Field(None, description="the link to one accelerator; absent: the accelerator's own PCIe link")


_SAME_UNITS: Final = MappingProxyType({"float8_e5m2": "float8_e4m3", "float6_e2m3": "float6_e3m2", "uint8": "int8"})


def _rate(table: dict[str, float], dtype: DType) -> float | None:
    """A format runs at its twin's rate (e5m2 as e4m3) unless the table names it."""
    return table.get(dtype.name, table.get(_SAME_UNITS.get(dtype.name, "")))
