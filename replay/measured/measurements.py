"""A piece of a table as measurements: operators, what they took, and which rows cannot be used and why."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from foretrace.ir import FormatError
from foretrace.replay.columns import Floats, Ints, Mask

from . import attention, collectives, convolution, elementwise, gemm, mla, moe
from .columns import Block, MeasuredColumns, join
from .formats import known_format
from .software import looped, software_of
from .tables import Table, Text, missing, read_tables, same_text, unfit

LATENCIES: Final = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6, "latency_ns": 1e-9}
"""Column of the measured time → its unit in seconds."""

LARGEST_SIZE: Final = 2.0**40
"""What no dimension of a tensor is: a size beyond it is a mistake."""

MOST_MACHINES: Final = 2000
"""Pairs of a GPU and an interconnect that one piece of a table may name."""

MOST_FLOPS: Final = 1e21
"""What no single operator takes: half an hour of the fastest chip there is."""


@dataclass(frozen=True)
class TableClass:
    """How the rows of one sort of table become operators."""

    name: str
    recognised_by: tuple[str, ...]
    """The columns that no other sort has together."""
    sizes: tuple[str, ...]
    """Columns of whole numbers of 1 or more."""
    blocks: Callable[[Table], list[Block]]
    kinds: Callable[[Table], Text]
    """What the scores call each row's kind."""
    naturals: tuple[str, ...] = ()
    """Columns of whole numbers of 0 or more."""
    optional: tuple[str, ...] = ()
    """Those of `sizes` and `naturals` that a table may leave out."""
    formats: tuple[str, ...] = ("dtype",)
    """Columns that name number formats."""
    refuse: Callable[[Table], list[tuple[str, Mask]]] = lambda table: []
    """Further (reason, rows) that cannot be used."""
    variants: Callable[[Table], Text] = lambda table: same_text("", table.rows)
    """What else than its name decides a row's machine."""

    def check(self, table: Table) -> None:
        """Raise `FormatError` for a column that is missing."""
        for name in (*self.sizes, *self.naturals):
            if name not in self.optional and name not in table:
                raise missing(table.path, name, table.columns)


CLASSES: Final = (
    TableClass(
        "moe",
        ("experts", "topk", "inter"),
        moe.SIZES,
        moe.blocks,
        lambda table: same_text("moe", table.rows),
        optional=moe.OPTIONAL,
        refuse=moe.refuse,
    ),
    TableClass(
        "convolution",
        ("c_in", "c_out", "image"),
        convolution.SIZES,
        convolution.blocks,
        lambda table: same_text("convolution", table.rows),
        convolution.NATURALS,
        convolution.OPTIONAL,
        refuse=convolution.refuse,
    ),
    TableClass(
        "attention",
        ("q_len", "kv_len", "n_heads", "head_dim"),
        attention.SIZES,
        attention.blocks,
        attention.kinds,
        attention.NATURALS,
        attention.OPTIONAL,
        ("dtype", "kv_dtype"),
        attention.refuse,
    ),
    TableClass(
        "mla",
        ("q_len", "kv_len", "n_heads"),
        mla.SIZES,
        mla.blocks,
        mla.kinds,
        formats=("dtype", "kv_dtype"),
        refuse=attention.refuse,
    ),
    TableClass(
        "collectives",
        ("op", "n_gpus", "bytes"),
        collectives.SIZES,
        collectives.blocks,
        collectives.kinds,
        optional=collectives.OPTIONAL,
        refuse=collectives.refuse,
        variants=collectives.variants,
    ),
    TableClass(
        "elementwise",
        ("op", "rows", "cols"),
        elementwise.SIZES,
        elementwise.blocks,
        elementwise.kinds,
        optional=elementwise.OPTIONAL,
        refuse=elementwise.refuse,
    ),
    TableClass(
        "gemm",
        ("m", "n", "k"),
        ("b", "m", "n", "k"),
        gemm.blocks,
        lambda table: same_text("gemm", table.rows),
        optional=("b",),
    ),
)
"""A table is the first of these all of whose telling columns it has."""


def table_class(table: Table) -> TableClass | None:
    """The sort of *table*, by its columns; None for one that holds no single operators."""
    return next((c for c in CLASSES if all(name in table for name in c.recognised_by)), None)


@dataclass(frozen=True, eq=False)
class Measurements:
    """n usable rows of a table."""

    path: str
    number: Ints
    """[n] the place of each row in its file, from 0."""
    gpu: Text
    dtype: Text
    kind: Text
    """[n] what the scores group by: ``gemm``, ``attention_prefill``, ``all_reduce``..."""
    software: Text
    source: Text
    """[n] where each row comes from, as its table says."""
    variant: Text
    """[n] what else decides the machine: the interconnect of a collective."""
    seconds: Floats
    """[n] measured, s."""
    operators: MeasuredColumns
    """[r] the operators that the rows are; r >= n."""
    row: Ints
    """[r] the row of each operator, ascending in no order."""
    refused: Mapping[str, int]
    """Reason → how many rows of the table could not be used."""
    looped: Mask
    """[n] whether many calls stood between two clocks: an eager row then holds nothing of the host's time."""

    @property
    def rows(self) -> int:
        """The number of usable rows."""
        return self.number.size

    def take(self, rows: Mask) -> "Measurements":
        """The rows where *rows* [n] is true."""
        place = np.cumsum(rows) - 1
        chosen = rows[self.row]
        return Measurements(
            self.path,
            self.number[rows],
            self.gpu.take(rows),
            self.dtype.take(rows),
            self.kind.take(rows),
            self.software.take(rows),
            self.source.take(rows),
            self.variant.take(rows),
            self.seconds[rows],
            self.operators.take(chosen),
            place[self.row[chosen]],
            {},
            self.looped[rows],
        )

    @property
    def dispatched(self) -> bool:
        """Whether the rows, of one part of `split`, hold the time in which a framework dispatches a call."""
        return self.software.values[:1] == ("eager",) and not self.looped.any()

    def largest(self, values: Floats) -> Floats:
        """[n] the largest of *values* [r] over the operators of each row."""
        found = np.full(self.rows, -np.inf)
        np.fmax.at(found, self.row, values)
        return found

    def sum(self, values: Floats) -> Floats:
        """[n] the sum of *values* [r] over the operators of each row."""
        return np.bincount(self.row, values, minlength=self.rows).astype(np.float64)

    def split(self) -> Iterator[tuple[str, str, str, Mask]]:
        """(gpu, variant, software, the rows of them): what one call of a cost model can price, all `looped` or none."""
        key = np.stack([self.gpu.codes, self.variant.codes, self.software.codes, self.looped])
        machines, place = np.unique(key, axis=1, return_inverse=True)
        if machines.shape[1] > MOST_MACHINES:
            raise FormatError(
                f"{self.path}: {machines.shape[1]:,} machines: expected columns gpu and interconnect of few names"
            )
        for i, (gpu, variant, software, _) in enumerate(machines.T.tolist()):
            names = self.gpu.values[gpu], self.variant.values[variant], self.software.values[software]
            yield *names, place.reshape(-1) == i


def read_measurements(path: str | Path, quality: str = "ok") -> Iterator[Measurements]:
    """The rows of a table of single operators, a piece at a time; *quality* ``all`` takes rows of any.

    Raises `FormatError` for a table whose columns are no sort that we know.
    """
    for table in read_tables(path):
        sort = table_class(table)
        if sort is None:
            known = "; ".join(f"{c.name}: {', '.join(c.recognised_by)}" for c in CLASSES)
            raise FormatError(f"{path}: its columns are those of no table of operators ({known})")
        yield measure(table, sort, quality)


def measure(table: Table, sort: TableClass, quality: str = "ok") -> Measurements:
    """*table* as measurements, rows that cannot be used counted in `Measurements.refused`."""
    sort.check(table)
    seconds = _seconds(table)
    gpu = table.text("gpu").map(lambda name: _beside(table.path, name))
    use = np.ones(table.rows, np.bool_)
    refused: dict[str, int] = {}
    with np.errstate(all="ignore"):  # of the rows refused
        for reason, bad in _refusals(table, sort, seconds, quality):
            if count := int((bad & use).sum()):
                refused[reason] = refused.get(reason, 0) + count
                use &= ~bad
        operators, row = join(sort.blocks(table))
    whole = Measurements(
        table.path,
        table.first + np.arange(table.rows),
        gpu,
        table.text("dtype"),
        sort.kinds(table),
        software_of(table),
        table.text("source", ""),
        sort.variants(table),
        seconds,
        operators,
        row,
        {},
        looped(table),
    )
    used = whole.take(use)
    work = used.sum(used.operators.matrix_flops + used.operators.vector_flops)
    if (absurd := work > MOST_FLOPS).any():
        refused[f"more than {MOST_FLOPS:.0e} FLOP in one operator: sizes out of all proportion"] = int(absurd.sum())
        used = used.take(~absurd)
    return Measurements(**{**vars(used), "refused": refused})


def _beside(path: str, gpu: str) -> str:
    """*gpu*, or where it is the name of a YAML file beside the table, that file."""
    is_file = gpu.endswith((".yaml", ".yml")) and Path(gpu).name == gpu
    return str(Path(path).parent / gpu) if is_file else gpu


def _seconds(table: Table) -> Floats:
    found = [name for name in LATENCIES if name in table]
    if not found:
        raise missing(table.path, "latency_us", table.columns)
    return table.number(found[0]) * LATENCIES[found[0]]


def _refusals(table: Table, sort: TableClass, seconds: Floats, quality: str) -> Iterator[tuple[str, Mask]]:
    if quality != "all" and "quality" in table:
        said = table.text("quality")
        yield from unfit(said, lambda v: v in (quality, ""), lambda v: f"quality {v}, and {quality!r} is asked for")
    latency = next(name for name in LATENCIES if name in table)
    yield f"{latency} is empty", np.isnan(seconds)
    yield f"{latency} is not positive", seconds <= 0
    yield f"{latency} is not finite", np.isinf(seconds)
    for name in (*sort.sizes, *sort.naturals):
        if name in table:
            yield from _bad_sizes(name, table.number(name), 1 if name in sort.sizes else 0)
    for name in sort.formats:
        if name in table:
            optional = name != "dtype"
            yield from unfit(
                table.text(name),
                lambda v, o=optional: known_format(v) or (o and not v),  # type: ignore[misc]
                lambda v, n=name: f"{n} {v} is no number format that we know",  # type: ignore[misc]
            )
    yield from sort.refuse(table)


def _bad_sizes(name: str, values: Floats, least: int) -> Iterator[tuple[str, Mask]]:
    yield f"{name} is empty", np.isnan(values)
    yield f"{name} is less than {least}", values < least
    yield f"{name} is larger than any tensor", values > LARGEST_SIZE
    yield f"{name} is not a whole number", np.isfinite(values) & (values != np.round(values))
