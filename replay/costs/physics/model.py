"""The cost model that joins the kernel classes: rows of `OpColumns` in, seconds with an interval out."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import DTYPES, FREE_KINDS, DType, ForetraceError, OpKind
from foretrace.replay.columns import KINDS, Floats, Ints, OpColumns
from foretrace.replay.costs import BOUNDS, Costs
from foretrace.replay.costs.roofline import emulations

from .attention import Attentions, price_decode, price_prefill
from .collective import (
    ANY,
    LIBRARIES,
    NEEDED,
    CollectiveConstants,
    Collectives,
    fabrics_of,
    nodes_spanned,
    op_of,
    price_collectives,
    protocols_of,
)
from .convolution import Convolutions, price_convolutions
from .facts import GENERIC, Facts, facts_of, pipeline_of
from .gemm import Gemms, price_gemms
from .grouped import Groups, balanced, price_groups
from .memory_bound import Streams, price_streams, traffic_of
from .packed import PIPELINE as PACKED
from .packed import price_packed
from .profile import CLASSES, EXPERTS, Profile, load_profile
from .residual import Operators
from .spread import UNKNOWN, distance_of

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator, System

DECODE_ROWS: Final = 16
"""Queries of a call up to which the split-KV kernel is taken (one token a sequence, or a few speculated ones)."""
NARROW_GROUP: Final = 16
"""Output channels a group below which a convolution (depthwise, causal) runs on ordinary units, bound by its bytes."""
FEW_ROWS: Final = 256
"""Queries up to which it competes with the flash kernel where the context is far longer (chunks, speculation)."""
LATENT_WIDTH: Final = 512
"""Head dim from which a single KV head is a latent (DeepSeek-V2's is 512 + 64)."""

_GEMM: Final = ("matrix", "cache", "memory", "launch")
_ATTENTION: Final = ("matrix", "special", "memory", "launch")
_STREAM: Final = ("memory", "vector", "special", "launch")
_COLLECTIVE: Final = ("link", "link", "launch")
NEWEST: Final = "hopper"
"""The pipeline that the newest releases of libraries were measured on."""


@dataclass(frozen=True)
class Physics:
    """The default cost model. A *profile* given stands for the one that the execution names."""

    profile: Profile | None = None
    name: str = "physics"

    def price(self, columns: OpColumns, system: "System", software: str = "eager") -> Costs:
        """Price every row of *columns* on one accelerator of *system*, driven by the kernels of *software*."""
        repeat = columns.attribute("repeat", 1.0)  # a loop's body runs at every trip; its work is that of all trips
        pricing = self._priced(_of_one_trip(columns, repeat), system, software)
        other = columns.of_kind({OpKind.OTHER})
        return Costs(
            pricing.seconds * repeat,
            pricing.low * repeat,
            pricing.high * repeat,
            pricing.bound,
            pricing.floors(),
            pricing.profile.timing_floor_s.get("gap", 0.0),
            pricing.profile.correlation,
            tuple(sorted(pricing.unmodelled | {columns.names[i] for i in np.flatnonzero(other).tolist()})),
            (*pricing.warnings(), *emulations(columns, system.accelerator)),
        )

    def classes(self, columns: OpColumns, system: "System", software: str = "eager") -> list[str]:
        """[r] the class of kernels and pipeline that prices each row, ``gemm/ampere``; empty for what is free."""
        pricing = self._priced(columns, system, software)
        names = list(pricing.keys)
        return [names[i] for i in pricing.place.tolist()]

    def _priced(self, columns: OpColumns, system: "System", software: str) -> "_Pricing":
        profile, driven = self.profile.driven_by(software) if self.profile else (load_profile(software), software)
        pricing = _Pricing(columns, system, profile, driven, software)
        free = columns.of_kind(FREE_KINDS)
        for code, dtype in enumerate(columns.dtypes):
            of_format = (columns.dtype == code) & ~free
            for kinds, price in _CLASSES:
                if (at := np.flatnonzero(of_format & columns.of_kind(kinds))).size:
                    price(pricing, at, dtype)
        return pricing


def _of_one_trip(columns: OpColumns, repeat: Floats) -> OpColumns:
    """*columns* with the work of one of each op's *repeat* [r] trips."""
    if (repeat == 1).all():
        return columns
    once = 1 / np.maximum(repeat, 1)
    names = ("matrix_flops", "vector_flops", "special_flops", "bytes_read", "bytes_written")
    return replace(columns, **{name: getattr(columns, name) * once for name in names})


@dataclass(eq=False)
class _Pricing:
    """A table being priced: what every class of kernels reads and writes."""

    columns: OpColumns
    system: "System"
    profile: Profile
    software: str
    """That the profile was calibrated on."""
    asked: str
    """That was asked for."""
    foreign: dict[str, set[str]] = field(default_factory=dict)
    guessed: int = 0
    """Collectives over links that nothing was fitted on."""
    across: int = 0
    """Collectives over several nodes."""
    unmodelled: set[str] = field(default_factory=set)
    """Names of collectives that do not say among how many, on a system of one."""

    def __post_init__(self) -> None:
        self.chip: Accelerator = self.system.accelerator
        rows = self.columns.rows
        self.seconds, self.low, self.high = np.zeros((3, rows))
        self.bound = np.full(rows, BOUNDS.index("free"), np.int8)
        self.keys: dict[str, int] = {"": 0}
        self.place = np.zeros(rows, np.int16)
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
        key = self.profile.key(kernels, facts.pipeline)
        chips = self.profile.fitted_on.get(key, {})
        if distance_of(self.chip, chips) == "far":
            self.foreign.setdefault(", ".join(sorted(chips)), set()).add(kernels)
        return self.profile.sets[key]

    def put(self, at: Ints, kernels: str, facts: Facts, priced: tuple[Floats, Ints], names: tuple[str, ...]) -> None:
        """Write the seconds of the rows *at*, with the interval of class *kernels*."""
        seconds, limit = priced
        key = f"{kernels}/{facts.pipeline}"
        self.place[at] = self.keys.setdefault(key, len(self.keys))
        calibration = self.profile.calibration
        if calibration is not None and (correction := calibration.corrections.get(key)) is not None:
            seconds = seconds * correction.factor(Operators(self.columns, at, seconds, self.software))
        if (pace := self.profile.find("pace", facts.pipeline)) is not None:
            own = {_COLLECTIVE: pace.collectives, _STREAM: pace.streams}
            seconds = seconds * own.get(names, pace.kernels)
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
            f"{', '.join(sorted(classes))}: constants fitted on {chips}, a generation apart from {chip.name}"
            if chips
            else f"{', '.join(sorted(classes))}: no chip like {chip.name} was ever fitted, the constants are estimates"
            for chips, classes in sorted(self.foreign.items())
        ]
        calibration = self.profile.calibration
        if calibration is not None and calibration.gpu not in ("", chip.name):
            found.append(
                f"profile {self.profile.name} was calibrated on {calibration.gpu} and is used on {chip.name}: "
                f"its corrections may not hold there; calibrate it on rows of {chip.name}"
            )
        if calibration is not None and self.software != self.asked:
            found.append(
                f"profile {self.profile.name} was calibrated on kernels of {self.software}: those of {self.asked} are "
                "corrected as if they were the same"
            )
        if self.guessed:
            found.append(
                f"{self.guessed} collectives over PCIe, a mesh or other links than NVLink: priced with NCCL's "
                "published numbers, as no such link was measured"
            )
        if self.across:
            found.append(
                f"{self.across} collectives over several nodes: constants fitted on two and four nodes of three "
                "clusters, of which networks differ by a factor of two; state scale_out of your own"
            )
        return found


def _gemms(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    b, m, n, k = (np.maximum(p.size(name, at), 1.0) for name in "bmnk")
    element = np.full(at.size, dtype.bits / 8)
    out = np.clip(p.columns.bytes_written[at] / (b * m * n), dtype.bits / 8, max(4.0, dtype.bits / 8))
    weight = p.size("weight_bytes", at, element)
    shared = (b > 1) & (p.columns.bytes_read[at] < 0.75 * b * (m * k * element + k * n * weight))  # read once for all
    b, m = np.where(shared, 1.0, b), np.where(shared, b * m, m)
    shapes = Gemms(b, m, n, k, element, weight, out, copies=p.size("copies", at, np.inf))
    if facts.pipeline == PACKED:
        p.put(at, "packed", facts, price_packed(shapes, facts, p.constants("packed", facts)), _GEMM)
        return
    if dtype.bits > 8 or not dtype.is_float:
        p.put(at, "gemm", facts, price_gemms(shapes, facts, p.constants("gemm", facts)), _GEMM)
        return
    families = np.array([_narrow_family(p.columns.names[i]) for i in at.tolist()], object)
    for kernels in np.unique(families).tolist():
        some = np.flatnonzero(families == kernels)
        priced = price_gemms(shapes.rows(some), facts, p.constants(kernels, facts))
        p.put(at[some], kernels, facts, priced, _GEMM)


def _narrow_family(name: str) -> str:
    """The class of kernels that the product of floats of 8 bits or fewer called *name* runs on."""
    if name.startswith("triton"):
        return "gemm_triton"
    return "gemm_block_scaled" if "block_scaled" in name else "gemm_8bit"


def _attentions(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype if dtype.bits > 8 else DTYPES["bfloat16"])
    element = np.full(at.size, dtype.bits / 8)
    batch, q_len, kv_len, heads, kv_heads, head_dim = (
        np.maximum(p.size(name, at), 1.0) for name in ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")
    )
    v_dim = np.maximum(p.size("v_dim", at, head_dim), 1.0)
    balanced = p.size("balanced", at, 0.0) > 0  # of context parallel ranks that share causal work alike: half each
    kv_len = np.where(balanced, np.maximum(kv_len / 2, 1.0), kv_len)
    one_latent = (kv_heads == 1) & (head_dim >= LATENT_WIDTH) & (v_dim < head_dim)
    x = Attentions(
        batch,
        q_len,
        kv_len,
        heads,
        kv_heads,
        head_dim,
        v_dim,
        p.size("window", at, 0.0),
        np.where(balanced, 0.0, p.size("causal", at, 0.0)),
        element,
        p.size("kv_bytes", at, element),
        np.where(one_latent, head_dim, head_dim + v_dim),
        np.where(p.size("masked", at, 0.0) > 0, 2.0 * batch * q_len * kv_len, 0.0),
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
        few = ((x.q_len <= FEW_ROWS) & (x.kv_len >= 8 * x.q_len))[some]
        if name.startswith("prefill") and few.any():  # the context of few queries may be split
            split, why = price_decode(x.rows(some), facts, p.constants("decode", facts))
            better = few & (split < seconds) & ~backward[some]
            seconds, limit = np.where(better, split, seconds), np.where(better, why, limit)
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
    narrow = p.size("groups", at) * NARROW_GROUP > p.size("out_channels", at)
    narrow &= p.size("groups", at) > 1
    if narrow.any():  # no unit to fill: each output is a short sum on ordinary units
        _streams(p, at[narrow], dtype)
    if not (at := at[~narrow]).size:
        return
    groups, channels = np.maximum(p.size("groups", at), 1.0), p.size("out_channels", at)
    k = np.maximum(p.size("k", at), 1.0)
    products = np.maximum(columns.matrix_flops[at] / (2 * k * channels), 1.0)  # pixels of the batch, passes
    full = np.full(at.size, element)
    gemms = Gemms(groups, products, np.maximum(channels / groups, 1.0), k, full, full, full)
    weights = channels * k * element
    image = np.maximum(columns.bytes_read[at] - weights, 0.0)
    width = p.size("in_channels", at, channels)
    small = (k * groups == 9 * width) & (image < 1.5 * element * products * width)  # 3 × 3 with a stride of 1
    shapes = Convolutions(gemms, image, (small & (groups == 1)).astype(np.float64))
    gemm, constants = p.constants("gemm", facts), p.constants("convolution", facts)
    p.put(at, "convolution", facts, price_convolutions(shapes, facts, gemm, constants), _GEMM)


def _grouped(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    m, n, k, groups = (np.maximum(p.size(name, at), 1.0) for name in ("m", "n", "k", "groups"))
    of_weights = p.columns.bytes_written[at] > 4.0 * m * n  # a gradient: [m, n] of each group, which shares its k rows
    m, k = np.where(of_weights, m * groups, m), np.where(of_weights, np.maximum(k / groups, 1.0), k)
    active, longest = balanced(m, groups)
    element = np.full(at.size, dtype.bits / 8)
    weight = p.size("weight_bytes", at, element)
    out = np.clip(p.columns.bytes_written[at] / (m * n), dtype.bits / 8, 4.0)
    given = p.size("active", at, active), p.size("longest", at, longest)
    x = Groups(m, *given, n, k, element, weight, out, p.size("around_bytes", at, np.nan))
    names, usual = [p.columns.names[i] for i in at.tolist()], p.profile.experts
    classes = [_grouped_class(name, usual, dtype, w) for name, w in zip(names, weight.tolist(), strict=True)]
    for name in sorted(set(classes)):
        some = np.flatnonzero([found == name for found in classes])
        constants = p.constants(name, facts)
        if facts.pipeline not in (GENERIC, p.chip.generation):  # of another generation than the chips measured:
            newest = p.profile.constants(name, NEWEST)  # the other kernels are the newest release's
            layer = {"bookkeeping_s": newest.bookkeeping_s, "around_efficiency": newest.around_efficiency}
            constants = replace(constants, **layer)
        p.put(at[some], name, facts, price_groups(x.take(some), facts, constants), _GEMM)


def _grouped_class(name: str, usual: str, dtype: DType, weight: float) -> str:
    """The class of the grouped product called *name*, of the *usual* family else, by bytes of an element's *weight*."""
    family = part if (part := name.split(".")[0]) in EXPERTS else usual
    ends: tuple[str, ...] = ("_4bit", "") if weight < 1 else ("",)
    if dtype.bits <= 8:
        ends = ("_block", "_8bit", "") if dtype.bits == 8 and weight > 1 else ("_8bit", "")
    return next(found for end in ends if (found := f"grouped_{family}{end}") in CLASSES)


def _collectives(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, DTYPES["bfloat16"])
    ranks = p.size("ranks", at, float(p.system.count) if p.system.count > 1 else np.nan)
    if (alone := np.isnan(ranks)).any():  # by its bytes, and listed
        _streams(p, at[alone], dtype)
        p.unmodelled |= {p.columns.names[i] for i in at[alone].tolist()}
        at, ranks = at[~alone], ranks[~alone]
    if not at.size:
        return
    names = [p.columns.names[i] for i in at.tolist()]
    ranks = np.maximum(ranks, 1.0)
    stride, given = np.maximum(p.size("stride", at), 1.0), p.size("nodes", at, np.nan)
    nodes = np.where(np.isnan(given), nodes_spanned(p.system, ranks, stride), np.maximum(given, 1.0))
    alone = ~np.isnan(given) & np.isnan(p.size("stride", at, np.nan))  # of a table: no sibling group runs beside it
    ops = np.array([op_of(name) for name in names])
    x = Collectives(ops, p.size("bytes", at, p.columns.bytes_read[at]), ranks, nodes, stride, alone)
    find, pipeline = p.profile.find, facts.pipeline
    protocols = protocols_of(lambda kernels: find(kernels, pipeline), p.constants("collective", facts))
    if not protocols:
        raise ForetraceError(f"profile {p.profile.name}: no link with {', '.join(NEEDED)} for {pipeline}")
    plain = np.array([name.startswith("nccl.") for name in names], np.bool_)
    launched = p.size("launched", at, 0.0) > 0
    for is_plain, is_launched in product((False, True), repeat=2):
        some = np.flatnonzero((plain == is_plain) & (launched == is_launched))
        if not some.size:
            continue
        shots = None if is_plain else find("shots", pipeline)
        launching = find("launching", p.chip.generation) if is_launched else None
        constants = CollectiveConstants(protocols, shots, launching, LIBRARIES.get(p.chip.vendor, ANY))
        seconds, limit, guessed = price_collectives(x.rows(some), fabrics_of(p.system), facts, constants)
        far = nodes[some] > 1
        p.guessed += int((guessed & ~far).sum())
        p.across += int(far.sum())
        kernels = "launching" if is_launched else "shots" if shots else "collective"
        p.put(at[some], kernels, facts, (seconds, limit), _COLLECTIVE)
        unsure = at[some][guessed]
        p.low[unsure], p.high[unsure] = p.seconds[unsure] / UNKNOWN.far, p.seconds[unsure] * UNKNOWN.far


def _streams(p: _Pricing, at: Ints, dtype: DType) -> None:
    facts = facts_of(p.chip, dtype)
    if ("stream", facts.pipeline) not in p.profile.sets:  # memory is the same whatever units a format has
        facts = replace(facts, pipeline=pipeline_of(p.chip))
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
    ({OpKind.GROUPED_MATMUL}, _grouped),
    ({OpKind.COLLECTIVE}, _collectives),
    (
        set(OpKind)
        - FREE_KINDS
        - {OpKind.MATMUL, OpKind.ATTENTION, OpKind.CONVOLUTION, OpKind.GROUPED_MATMUL, OpKind.COLLECTIVE},
        _streams,
    ),
)
"""Kinds and what prices them."""
