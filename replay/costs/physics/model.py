"""The cost model that joins the kernel classes: rows of `OpColumns` in, seconds with an interval out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import DTYPES, FREE_KINDS, DType, OpKind
from foretrace.replay.columns import KINDS, Floats, Ints, OpColumns
from foretrace.replay.costs import BOUNDS, Costs
from foretrace.replay.costs.roofline import emulations

from .attention import Attentions, price_decode, price_prefill
from .convolution import Convolutions, price_convolutions
from .facts import Facts, facts_of
from .gemm import Gemms, price_gemms
from .memory_bound import Streams, price_streams, traffic_of
from .profile import Profile, load_profile

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator, System

DECODE_ROWS: Final = 16
"""Queries of a call up to which the split-KV kernel is taken (one token a sequence, or a few speculated ones)."""
LATENT_WIDTH: Final = 512
"""Head dim from which a single KV head is a latent (DeepSeek-V2's is 512 + 64)."""

_GEMM: Final = ("matrix", "cache", "memory", "launch")
_ATTENTION: Final = ("matrix", "special", "memory", "launch")
_STREAM: Final = ("memory", "vector", "special", "launch")


@dataclass(frozen=True)
class Physics:
    """The default cost model. A *profile* given stands for the one that the execution names."""

    profile: Profile | None = None
    name: str = "physics"

    def price(self, columns: OpColumns, system: "System", software: str = "eager") -> Costs:
        """Price every row of *columns* on one accelerator of *system*, driven by the kernels of *software*."""
        pricing = _Pricing(columns, system.accelerator, self.profile or load_profile(software))
        free = columns.of_kind(FREE_KINDS)
        for code, dtype in enumerate(columns.dtypes):
            of_format = (columns.dtype == code) & ~free
            for kinds, price in _CLASSES:
                if (at := np.flatnonzero(of_format & columns.of_kind(kinds))).size:
                    price(pricing, at, dtype)
        repeat = columns.attribute("repeat", 1.0)  # a loop's body runs at every trip
        other = columns.of_kind({OpKind.OTHER})
        return Costs(
            pricing.seconds * repeat,
            pricing.low * repeat,
            pricing.high * repeat,
            pricing.bound,
            pricing.floors(),
            pricing.profile.timing_floor_s.get("gap", 0.0),
            tuple(sorted({columns.names[i] for i in np.flatnonzero(other).tolist()})),
            (*pricing.warnings(), *emulations(columns, system.accelerator)),
        )


@dataclass(eq=False)
class _Pricing:
    """A table being priced: what every class of kernels reads and writes."""

    columns: OpColumns
    chip: "Accelerator"
    profile: Profile
    foreign: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.columns.rows
        self.seconds, self.low, self.high = np.zeros((3, rows))
        self.bound = np.full(rows, BOUNDS.index("free"), np.int8)
        self._attributes: dict[str, Floats] = {}

    def size(self, name: str, at: Ints, absent: "Floats | float" = 1.0) -> Floats:
        """[at] The attribute *name*, *absent* where an op has none."""
        if name not in self._attributes:
            self._attributes[name] = self.columns.attribute(name)
        found = self._attributes[name][at]
        return np.where(np.isnan(found), absent, found)

    @cached_property
    def warm_bytes(self) -> Floats:
        return self.columns.warm_bytes()

    @cached_property
    def row_length(self) -> Floats:
        return self.columns.row_length()

    def constants(self, kernels: str, facts: Facts) -> Any:
        """Those of class *kernels* on the pipeline of *facts*; one that was never fitted is warned of."""
        found, fitted_on = self.profile.constants(kernels, facts.pipeline)
        if fitted_on != facts.pipeline:
            self.foreign.setdefault(fitted_on, set()).add(kernels)
        return found

    def put(self, at: Ints, kernels: str, facts: Facts, priced: tuple[Floats, Ints], names: tuple[str, ...]) -> None:
        """Write the seconds of the rows *at*, with the interval of class *kernels*."""
        seconds, limit = priced
        spread = self.profile.spread(kernels, facts.pipeline, self.chip)
        self.seconds[at] = seconds
        self.low[at], self.high[at] = seconds / spread, seconds * spread
        self.bound[at] = np.array([BOUNDS.index(name) for name in names], np.int8)[limit]

    def floors(self) -> Floats:
        """[r] s of an eager call of each op between two events, by its kind."""
        floors = self.profile.timing_floor_s
        by_kind = np.array([floors.get(str(kind), floors.get("other", 0.0)) for kind in KINDS])
        amd = floors.get("amd_share", 1.0) if self.chip.vendor == "AMD" else 1.0  # the ROCm runtime's calls are shorter
        return np.asarray(by_kind[self.columns.kind] * amd)

    def warnings(self) -> list[str]:
        chip = self.chip
        found = [
            f"{', '.join(sorted(classes))} on {chip.name}: constants fitted on the {pipeline} pipeline, "
            f"which may be 35 to 65 % off another"
            for pipeline, classes in sorted(self.foreign.items())
        ]
        if chip.resembles:
            found.append(f"{chip.name} is timed as a {chip.resembles} chip: no {chip.generation} was ever fitted")
        return found


def _gemms(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    b, m, n, k = (np.maximum(p.size(name, at), 1.0) for name in "bmnk")
    element = np.full(at.size, dtype.bits / 8)
    out = np.clip(p.columns.bytes_written[at] / (b * m * n), dtype.bits / 8, 4.0)
    shapes = Gemms(b, m, n, k, element, p.size("weight_bytes", at, element), out, copies=p.size("copies", at, np.inf))
    kernels = "gemm_8bit" if dtype.bits <= 8 and dtype.is_float else "gemm"
    p.put(at, kernels, facts, price_gemms(shapes, facts, p.constants(kernels, facts)), _GEMM)


def _attentions(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype if dtype.bits > 8 else DTYPES["bfloat16"])
    element = np.full(at.size, dtype.bits / 8)
    batch, q_len, kv_len, heads, kv_heads, head_dim = (
        np.maximum(p.size(name, at), 1.0) for name in ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")
    )
    x = Attentions(
        batch,
        q_len,
        kv_len,
        heads,
        kv_heads,
        head_dim,
        np.maximum(p.size("v_dim", at, head_dim), 1.0),
        p.size("window", at, 0.0),
        p.size("causal", at, 0.0),
        element,
        p.size("kv_bytes", at, element),
        p.size("copies", at, np.inf),
    )
    backward = p.size("backward", at, 0.0) > 0
    decode = (x.q_len <= DECODE_ROWS) & (x.kv_len > x.q_len) & ~backward
    decode |= (x.q_len == 1) & ~backward
    latent = (x.kv_heads == 1) & (x.head_dim >= LATENT_WIDTH)
    expanded = x.head_dim != x.v_dim
    narrow = x.bytes_kv <= 1
    triton = np.array(["triton" in p.columns.names[i] for i in at.tolist()], np.bool_)
    kernels = np.where(
        decode,
        np.where(latent, "latent_decode", np.where(narrow, "decode_8bit", "decode")),
        np.where(
            triton,
            "prefill_triton",
            np.where(
                expanded & ~latent,
                "latent_prefill",
                np.where(x.causal > 0, np.where(narrow, "prefill_8bit", "prefill"), "encoder"),
            ),
        ),
    )
    for name in np.unique(kernels).tolist():
        some = np.flatnonzero(kernels == name)
        constants = p.constants(name, facts)
        price = price_decode if "decode" in name else price_prefill
        seconds, limit = price(x.rows(some), facts, constants)
        again = backward[some]
        if again.any():  # two products of the forward become five (see `ir.work`)
            wide = x.rows(some)
            more = (3 * wide.head_dim + 2 * wide.v_dim) / (wide.head_dim + wide.v_dim) * constants.backward
            seconds = np.where(again, seconds * more, seconds)
        p.put(at[some], name, facts, (seconds, limit), _ATTENTION)


def _convolutions(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    columns = p.columns
    element = dtype.bits / 8
    groups, channels = np.maximum(p.size("groups", at), 1.0), p.size("out_channels", at)
    k = np.maximum(p.size("k", at), 1.0)
    products = np.maximum(columns.matrix_flops[at] / (2 * k * channels), 1.0)  # pixels of the batch, passes
    full = np.full(at.size, element)
    gemms = Gemms(groups, products, np.maximum(channels / groups, 1.0), k, full, full, full)
    shapes = Convolutions(gemms, columns.bytes_read[at], p.size("winograd", at, 0.0))
    gemm, constants = p.constants("gemm", facts), p.constants("convolution", facts)
    p.put(at, "convolution", facts, price_convolutions(shapes, facts, gemm, constants), _GEMM)


def _streams(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    columns = p.columns
    kernels = [columns.names[i] for i in at.tolist()]
    traffic, per_clock, extra_s = traffic_of(columns.kind[at], kernels, p.row_length[at], p.constants("traffic", facts))
    x = Streams(
        columns.bytes[at], p.warm_bytes[at], columns.vector_flops[at] + columns.matrix_flops[at],
        columns.special_flops[at], traffic, per_clock, extra_s,
    )  # fmt: skip
    p.put(at, "stream", facts, price_streams(x, facts, p.constants("stream", facts)), _STREAM)


_CLASSES: Final[tuple[tuple[Collection[OpKind], Any], ...]] = (
    ({OpKind.MATMUL}, _gemms),
    ({OpKind.ATTENTION}, _attentions),
    ({OpKind.CONVOLUTION}, _convolutions),
    (
        set(OpKind) - FREE_KINDS - {OpKind.MATMUL, OpKind.ATTENTION, OpKind.CONVOLUTION},
        _streams,
    ),
)
"""Kinds and what prices them."""
