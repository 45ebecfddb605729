"""What is known of the operators of both traces, coded so that equal values have equal codes."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_WORK
from foretrace.traces.strings import StringColumn, aligned_codes
from foretrace.traces.trace import Trace

from .kernels import PROFILED, STRUCTURAL, coarse_kind, fused_text, kernel_kind, operator_kind
from .operators import VIEWS, Operators, canonical_name, common_name

COMPOSITES = frozenset(
    [
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_flash_attention_backward",
        "aten::native_dropout",  # on a CPU a random mask, and products with it
        "aten::native_dropout_backward",
    ]
)  #: beside everything in the namespace foretrace
_SIZE = re.compile(r"\d+")
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Codes = tuple[Ints, Ints]  # of both sides over one table, 0 where unknown


@dataclass(frozen=True)
class Evidence:
    """Columns of both sides' operators in order; [0] is predicted (or the first trace), [1] measured."""

    name: Codes
    module: Codes
    shapes: Codes
    dims: Codes  #: how many inputs of how many dimensions: what stays where sizes depend on the data
    phase: Codes
    kind: Codes
    structural: tuple[Bools, Bools]  #: of a kind that shows the model's structure
    collective: tuple[Bools, Bools]
    optimizer: tuple[Bools, Bools]  #: of the optimizer's phase
    view: tuple[Bools, Bools]
    composite: tuple[Bools, Bools]  #: captured as one operator, and known to run as several
    kernel: tuple[Bools, Bools]  #: a device's work that stands for itself: its name is no operator's
    timed: tuple[Bools, Bools]  #: stands for any time at all
    texts: tuple[StringColumn, StringColumn]  #: the names as they stand in the traces

    def column(self, name: str) -> Codes:
        """One of the coded columns."""
        found: Codes = getattr(self, name)
        return found

    def joint(self, columns: tuple[str, ...]) -> Codes:
        """One dense key per operator from several *columns*."""
        key: Ints = np.concatenate(self.column(columns[0]))
        for column in columns[1:]:
            key = np.unique((key << 32) + np.concatenate(self.column(column)), return_inverse=True)[1]
        return key[: len(self.name[0])], key[len(self.name[0]) :]

    def agree(self, column: str, i: Ints, j: Ints) -> Bools:
        """Whether pairs (i, j) do not contradict each other in *column*."""
        x, y = self.column(column)
        agreed: Bools = (x[i] == y[j]) | (x[i] == 0) | (y[j] == 0)
        return agreed


def gather_evidence(a: Trace, b: Trace, found_a: Operators, found_b: Operators) -> Evidence:
    """The evidence on the operators *found_a* of *a* and *found_b* of *b*."""
    rows_a, rows_b = found_a.rows, found_b.rows
    sides = ((a, rows_a), (b, rows_b))
    texts = [t.name.take(r) for t, r in sides]
    names = [t.map(common_name) for t in texts]
    modules = without_wrapper(a.module.take(rows_a), b.module.take(rows_b))
    shapes = [t.shapes.take(r).map(lambda s: s.replace("[]", "")) for t, r in sides]
    plain = [_single_batches(n, s) for n, s in zip(names, shapes, strict=True)]
    names, shapes = [n for n, _ in plain], [s for _, s in plain]
    phases = [t.phase.take(r) for t, r in sides]
    kernel = [t.kind.take(r).isin(DEVICE_WORK) for t, r in sides]
    kernel = [k & bool((t.op_id[r] < 0).all()) for k, (t, r) in zip(kernel, sides, strict=True)]
    views = [t.map(canonical_name).isin(VIEWS) for t in texts]
    kinds = [_kinds(t.kind.take(r), n, k) for (t, r), n, k in zip(sides, texts, kernel, strict=True)]
    return Evidence(
        name=_codes(*names),
        module=_codes(*modules),
        shapes=_codes(*_without_out(names, shapes)),
        dims=_codes(*(s.map(lambda text: _SIZE.sub("n", text)) for s in shapes)),
        phase=_codes(*phases),
        kind=_codes(kinds[0], kinds[1]),
        structural=(kinds[0].isin(STRUCTURAL), kinds[1].isin(STRUCTURAL)),
        collective=(kinds[0].isin(["collective"]), kinds[1].isin(["collective"])),
        optimizer=(phases[0].isin(["optimizer"]), phases[1].isin(["optimizer"])),
        view=(views[0], views[1]),
        composite=(_is_composite(texts[0]), _is_composite(texts[1])),
        kernel=(kernel[0], kernel[1]),
        timed=(found_a.seconds[rows_a] > 0, found_b.seconds[rows_b] > 0),
        texts=(texts[0], texts[1]),
    )


def _is_composite(name: StringColumn) -> Bools:
    return name.map(canonical_name).where(lambda n: n.startswith("foretrace::") or n in COMPOSITES)


def _kinds(stated: StringColumn, name: StringColumn, kernel: Bools) -> StringColumn:
    """A prediction states kinds, a profiler's kernels and operators are told by their names; of fused ones none."""
    of_name = StringColumn.of(
        [kernel_kind(n) if k else operator_kind(n) for n, k in zip(name.tolist(), kernel.tolist(), strict=True)]
    )
    known = stated.map(lambda k: "" if k in PROFILED else coarse_kind(k))
    table = ("", *known.values, *of_name.values)
    use = known.where(bool)
    codes = np.where(use, known.codes + 1, of_name.codes + 1 + len(known.values))
    codes[name.where(lambda n: fused_text(n) is not None)] = 0
    return StringColumn(codes.astype(np.int32), table).map(str)


def _single_batches(names: StringColumn, shapes: StringColumn) -> tuple[StringColumn, StringColumn]:
    """Batched products of one batch by the name and shapes of the plain product: compilers write it so."""
    single = names.isin(["aten::bmm"]) & shapes.where(_one_batch)
    rows = np.flatnonzero(single)
    if not len(rows):
        return names, shapes
    plain = shapes.map(lambda s: s.replace("[1,", "[") if _one_batch(s) else s)
    return _chosen(names, StringColumn.constant("aten::mm", len(names)), single), _chosen(shapes, plain, single)


def _one_batch(shapes: str) -> bool:
    return re.fullmatch(r"(\[1,\d+,\d+\]){2,}", shapes) is not None


def _chosen(a: StringColumn, b: StringColumn, second: Bools) -> StringColumn:
    """*b* where *second*, else *a*."""
    left, right = aligned_codes(a, b)
    return StringColumn(np.where(second, right, left).astype(np.int32), tuple(dict.fromkeys(a.values + b.values)))


def _without_out(names: list[StringColumn], shapes: list[StringColumn]) -> list[StringColumn]:
    """Shapes less the last where only without it the other side knows them: a profiler lists an ``out=`` too."""
    pairs = [
        np.unique(n.codes.astype(np.int64) << 32 | s.codes, return_inverse=True)
        for n, s in zip(names, shapes, strict=True)
    ]
    texts = [
        [(n.values[p >> 32], s.values[p & 0xFFFFFFFF]) for p in keys.tolist()]
        for n, s, (keys, _) in zip(names, shapes, pairs, strict=True)
    ]
    changed = []
    for side, other in ((0, 1), (1, 0)):
        known = set(texts[other])
        less = [(n, s[: s.rfind("[")]) for n, s in texts[side]]
        values = [s if (n, s) in known or (n, t) not in known or not t else t
                  for (n, s), (_, t) in zip(texts[side], less, strict=True)]  # fmt: skip
        changed.append(StringColumn(pairs[side][1].astype(np.int32), tuple(values)).map(str))
    return changed


def _codes(x: StringColumn, y: StringColumn) -> Codes:
    # "" comes first in both tables, so that its common code is 0
    left, right = aligned_codes(*(StringColumn(c.codes + 1, ("", *c.values)) for c in (x, y)))
    return left.astype(np.int64), right.astype(np.int64)


def without_wrapper(a: StringColumn, b: StringColumn) -> tuple[StringColumn, StringColumn]:
    """Module paths of both sides, less the outer names (``model.``, DDP's ``module.``) that only one side has."""

    def shared(x: StringColumn, y: StringColumn) -> int:
        return len((set(x.used()) & set(y.used())) - {""})

    def inner(column: StringColumn) -> StringColumn:
        return column.map(lambda path: path.partition(".")[2])

    choices = [(a, b), (inner(a), b), (a, inner(b)), (inner(inner(a)), b), (a, inner(inner(b)))]
    return max(choices, key=lambda pair: shared(*pair))
