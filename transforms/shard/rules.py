"""Placement rules of all kinds but matrix products and attention: what operands must lie as, and how results do."""

from collections.abc import Mapping, Sequence
from typing import Final

from foretrace.ir import OpKind, Shape, Tensor

from .call import Call, Decision, Rule, settled, target_of
from .placement import PARTIAL, REPLICATE, Placement, shard
from .views import aligned, moved

LINEAR_UNARY: Final = frozenset("neg mul mul_ div div_ _to_copy clone copy contiguous to sum cat".split())
ADDS: Final = frozenset("add add_ sub sub_ _foreach_add_ add_n".split())


def _view(call: Call) -> Decision | None:
    place, before = call.places[0], call.ins[0].shape
    if place.partial and call.function == "expand" and _multiplied(before, call.outs[0].shape):
        return Decision((REPLICATE, *call.places[1:]), (REPLICATE,))  # summed where it is small
    if not place.shards:
        return Decision(call.places, (place,) * len(call.outs))
    gives = [moved(call.function, before, o.shape, place) for o in call.outs]
    if any(g is None for g in gives):
        return None
    return Decision(call.places, tuple(g for g in gives if g is not None))


def _multiplied(before: Shape, after: Shape) -> bool:
    """Whether a view repeats elements; a batch of one that is expanded to one does not."""
    kept = after[len(after) - len(before) :]
    return after != before and (any(a != b for a, b in zip(before, kept, strict=True)) or len(after) > len(before))


def _pointwise(call: Call) -> Decision | None:
    """Operands broadcast to the result; all lie as the one that is divided."""
    if call.function.startswith("_foreach_"):
        return _foreach(call)
    if call.function.startswith("new_") or call.function.endswith("_like"):
        return _made_like(call)
    if call.function == "nll_loss_backward":
        return _like_first(call, 1)
    if call.function in ("cat", "stack"):
        return _cat(call)
    if not call.outs:
        return None
    shape = call.outs[0].shape
    if any(len(t.shape) > len(shape) for t in call.ins):
        return None
    partial = [p.partial for p in call.places]
    if any(partial) and (kept := _still_partial(call, partial)):
        return kept
    if kept := _residual(call):
        return kept
    ranks = [len(t.shape) for t in call.ins]
    target = target_of(aligned(call.places, ranks, len(shape)), _fitting(call.fallback, call.outs[0]))
    if target.shards and target.dim >= len(shape):
        return None
    if not _same_extent(call, target, shape):
        return None
    needs = tuple(_operand(t, target, shape) for t in call.ins)
    gives = tuple(target if len(o.shape) == len(shape) else REPLICATE for o in call.outs)
    return Decision(needs, gives)


def _residual(call: Call) -> Decision | None:
    """A sum of divided features and a tensor that is not: what flows from layer to layer keeps its placement."""
    if call.function not in ADDS or call.op.phase != "forward" or len(call.ins) < 2:
        return None
    shape = call.outs[0].shape
    features = [p.shards and not p.tokens and p.dim == len(shape) - 1 for p in call.places]
    if not any(features) or all(features) or len(shape) < 2 or any(t.shape != shape for t in call.ins):
        return None
    target = _fitting(call.fallback, call.outs[0])
    return Decision((target,) * len(call.ins), (target,))


def _made_like(call: Call) -> Decision | None:
    """Constants of an operand's shape: its values are not read, so a sum need not be complete."""
    if len(call.ins) != 1 or len(call.outs) != 1:
        return None
    place, shape = call.places[0], call.outs[0].shape
    keeps = place.shards and len(shape) == len(call.ins[0].shape) and shape[place.dim] == call.ins[0].shape[place.dim]
    return Decision((place,), (place if keeps else REPLICATE,))


def _same_extent(call: Call, target: Placement, shape: Shape) -> bool:
    """Whether the divided dim of the result is that of the operands: a pad makes it longer."""
    if not target.shards:
        return True
    sizes = [t.shape[i] for t in call.ins if 0 <= (i := target.dim - len(shape) + len(t.shape)) < len(t.shape)]
    return any(size == shape[target.dim] for size in sizes)


def _fitting(fallback: Placement, out: Tensor) -> Placement:
    return fallback if not fallback.shards or fallback.dim < len(out.shape) else REPLICATE


def _operand(tensor: Tensor, target: Placement, shape: Shape) -> Placement:
    """How an operand that broadcasts to *shape* lies where the result lies as *target*."""
    if not target.shards:
        return target
    dim = target.dim - len(shape) + len(tensor.shape)
    if dim < 0 or (tensor.shape[dim] == 1 and shape[target.dim] != 1):
        return REPLICATE
    return target.at(dim)


def _still_partial(call: Call, partial: Sequence[bool]) -> Decision | None:
    """Sums pass through what is linear in them, as long as they are in their module (adding them up may go on)."""
    gives = (PARTIAL,) * len(call.outs)
    waits = all(s for s, p in zip(call.summing, partial, strict=True) if p)
    rest = [p for p in call.places if not p.partial]
    if call.function in ADDS and call.op.phase == "backward" and all(p == REPLICATE for p in rest):
        return Decision(call.places, gives)  # gradients of one tensor meet first (one rank adds what is whole)
    near = all(s or n for s, n, p in zip(call.summing, call.near, partial, strict=True) if p)
    if call.function in ADDS and not rest and (waits or near):
        return Decision(call.places, gives)
    once = sum(partial) == 1 and all(p == REPLICATE or p.partial for p in call.places)
    if call.function in ADDS and waits and once:
        return Decision(call.places, gives)  # biases of experts: one rank adds them
    scaled = near and call.function in ("mul", "mul_") and _same_size(call, partial)
    if (waits or scaled) and once and call.function in LINEAR_UNARY and _linear(call, partial):
        return Decision(call.places, gives)
    return None


def _same_size(call: Call, partial: Sequence[bool]) -> bool:
    return all(t.shape == call.outs[0].shape for t, p in zip(call.ins, partial, strict=True) if p)


def _linear(call: Call, partial: Sequence[bool]) -> bool:
    if call.function.startswith("div"):
        return partial[0]
    if call.function in ("_to_copy", "to", "copy"):
        return call.ins[0].dtype.bits >= call.outs[0].dtype.bits
    return True


def _foreach(call: Call) -> Decision | None:
    """Lists of tensors: every list lies as its first."""
    n = len(call.outs)
    if not n or len(call.ins) % n:
        return None
    first = [settled(p, call) if p.partial else p for p in call.places[:n]]
    for i in range(len(first)):
        if first[i] == REPLICATE:  # a list of gradients may come first
            others = [call.places[j] for j in range(i, len(call.ins), n) if call.places[j].shards]
            first[i] = others[0] if others else REPLICATE
    needs = [
        first[j % n] if _has(t.shape, first[j % n], call.outs[j % n]) else REPLICATE for j, t in enumerate(call.ins)
    ]
    return Decision(tuple(needs), tuple(first))


def _has(shape: Shape, place: Placement, out: Tensor) -> bool:
    """Whether a list's tensor has the divided dim of the result, and is not one that broadcasts to it."""
    return not place.shards or (len(shape) > place.dim and shape[place.dim] == out.shape[place.dim])


def _like_first(call: Call, which: int) -> Decision:
    """The result lies as operand *which* [rows, columns]; operands of one value a row go with its rows."""
    place = settled(call.places[which], call)
    rows = place if place.shards and place.dim == 0 else REPLICATE
    needs = [place if len(t.shape) == 2 else rows if len(t.shape) == 1 else REPLICATE for t in call.ins]
    return Decision(tuple(needs), (place,) * len(call.outs))


def _cat(call: Call) -> Decision | None:
    """Along a dim, or a new one (stack). A cache may begin as a tensor of one dim and no elements."""
    rank, stacks = len(call.outs[0].shape), call.function == "stack"
    dim = _dim(call, rank)
    if dim is None:
        return None
    full = [len(t.shape) == rank - stacks for t in call.ins]
    places = [p for p, f in zip(call.places, full, strict=True) if f]
    if not places:
        return None
    if all(p.partial for p in places):
        return Decision(call.places, (PARTIAL,))
    target = target_of(places, _fitting(call.fallback, call.ins[full.index(True)]))
    if target.shards and target.dim == dim and not stacks and any(p != target for p in places):
        return None
    gives = target.at(target.dim + (stacks and dim <= target.dim)) if target.shards else target
    return Decision(tuple(target if f else REPLICATE for f in full), (gives,))


def _dim(call: Call, rank: int) -> int | None:
    dim = call.op.attributes.get("dim", 0 if call.function in ("cat", "stack") else None)
    if isinstance(dim, tuple):
        dim = dim[0] if len(dim) == 1 else None
    return dim % rank if isinstance(dim, int) and rank else None


def _norm(call: Call) -> Decision | None:
    """The dims that a norm does not reduce may be divided; its weights' gradients are then sums over the ranks."""
    normalized = call.op.attributes.get("normalized_shape")
    width = len(normalized) if isinstance(normalized, tuple) else 1
    wide = [i for i, t in enumerate(call.ins) if len(t.shape) == len(call.ins[0].shape) and len(t.shape) > width]
    if not wide:
        return None
    target = target_of([call.places[i] for i in wide], call.fallback)
    rank = len(call.ins[0].shape)
    if target.shards and target.dim >= rank - width:
        return None
    needs = [target if i in wide else REPLICATE for i in range(len(call.ins))]
    gives = [
        target if len(o.shape) == rank else PARTIAL if target.shards and "backward" in call.function else REPLICATE
        for o in call.outs
    ]
    return Decision(tuple(needs), tuple(gives))


def _softmax(call: Call) -> Decision | None:
    """Over a divided dim each rank does its part, and ranks exchange a maximum and a sum a row.

    So do Megatron-LM's vocab-parallel cross entropy (arXiv:1909.08053, section 3) and DTensor's `loss_parallel`. In the
    backward a softmax exchanges a sum; that of a log-softmax under a cross entropy is known to every rank.
    """
    target = target_of(call.places, call.fallback)
    rank = len(call.outs[0].shape)
    if any(len(t.shape) != rank for t in call.ins):
        return None
    dim = _dim(call, rank)
    over = target.shards and target.dim == (rank - 1 if dim is None else dim)
    backward = 0 if "log" in call.function else 1
    exchanges = (backward if "backward" in call.function else 2) if over else 0
    return Decision((target,) * len(call.ins), (target,) * len(call.outs), exchanges=exchanges)


def _reduction(call: Call) -> Decision | None:
    if call.function == "nll_loss_forward":
        first = _like_first(call, 0)
        place = first.gives[0]
        if place.shards and place.dim == 1:  # the rank that has a row's target tells the others
            return Decision(first.needs, (REPLICATE,) * len(call.outs), exchanges=1)
        return Decision(first.needs, (PARTIAL if place.shards else REPLICATE,) * len(call.outs))
    if len(call.ins) != 1 or not call.outs:
        return None
    place, rank = call.places[0], len(call.ins[0].shape)
    additive = call.function in ("sum", "mean", "linalg_vector_norm")  # a norm's squares add up
    if place.partial:
        if (call.summing[0] or call.near[0]) and call.function != "linalg_vector_norm" and additive:
            return Decision((place,), (PARTIAL,) * len(call.outs))
        place = _fitting(call.fallback, call.ins[0])
    if not place.shards:
        return Decision((place,), (REPLICATE,) * len(call.outs))
    dims = call.op.attributes.get("dim")
    given = dims if isinstance(dims, tuple) else (dims,) if isinstance(dims, int) else range(rank)
    reduced = {d % rank for d in given}
    if place.dim in reduced:
        return Decision((place,), (PARTIAL,) * len(call.outs)) if additive else None
    shift = 0 if len(call.outs[0].shape) == rank else sum(d < place.dim for d in reduced)
    return Decision((place,), (place.at(place.dim - shift),) * len(call.outs))


def _gather_scatter(call: Call) -> Decision | None:
    """Sums pass through gathers and scatters by whole indices; else all is gathered."""
    if call.function == "embedding_dense_backward":
        return _embedding_backward(call)
    if kept := _by_rows(call):
        return kept
    floats = [i for i, t in enumerate(call.ins) if t.dtype.is_float]
    sums = [i for i in floats if call.places[i].partial]
    others = all(call.places[i] == REPLICATE for i in range(len(call.ins)) if i not in sums)
    if sums and others and all(call.summing[i] for i in sums) and len(sums) >= len(floats) - 1:
        return Decision(call.places, (PARTIAL,) * len(call.outs))
    return None


def _by_rows(call: Call) -> Decision | None:
    """Rows looked up, or added, by whole indices: the last dim, which no index touches, may be divided."""
    puts = call.function in ("index_put", "index_put_")
    if call.function != "index" and not puts:
        return None
    table, rows = call.ins[0].shape, (call.ins[-1] if puts else call.outs[0]).shape
    ids = call.ins[1:-1] if puts else call.ins[1:]
    places = (call.places[0], call.places[-1] if puts else REPLICATE)
    for place, of_rows in zip(places, (False, True), strict=True):
        if not place.shards or place.tokens or place.extent is not None:
            continue
        dim, there = _beside(table, rows, [t.shape for t in ids], place.dim, of_rows)
        if dim < 0:
            return None
        first, second = shard(dim), shard(there)
        if all(p in (REPLICATE, q) for p, q in zip(places, (first, second), strict=True)):
            between = (REPLICATE,) * len(ids)
            return Decision((first, *between, second), (first,)) if puts else Decision((first, *between), (second,))
    return None


def _beside(table: Shape, rows: Shape, ids: Sequence[Shape], dim: int, of_rows: bool) -> tuple[int, int]:
    """A dim of *table* that no index takes, and the same of *rows*; *dim* is known of one. (-1, -1): an index may."""
    if len(ids) == 1:
        taken = [d for d in range(len(table)) if (*table[:d], *ids[0], *table[d + 1 :]) == rows]
        more = len(ids[0]) - 1
        found = {
            (dim - more * (d < dim), dim) if of_rows else (dim, dim + more * (d < dim))
            for d in taken
            if not of_rows or not d <= dim <= d + more
        }
        if len(found) == 1 and all(d != next(iter(found))[0] for d in taken):
            return found.pop()
        return -1, -1
    last = len(rows) - 1 if of_rows else len(table) - 1
    ok = dim == last and len(ids) < len(table) and table[-1] == rows[-1]
    return (len(table) - 1, len(rows) - 1) if ok else (-1, -1)


def _embedding(call: Call) -> Decision | None:
    """A table divided by rows gives sums (each rank adds what it holds), by columns a divided width."""
    if len(call.ins) < 2:
        return None
    table, ids = call.places[0], call.places[1]
    if table.shards:
        out = PARTIAL if table.dim == 0 else shard(len(call.outs[0].shape) - 1)
        return Decision((table, REPLICATE, *call.places[2:]), (out,))
    here, size = call.fallback, call.ins[1].shape
    if here.shards and len(size) > here.dim and size[here.dim] == call.outs[0].shape[here.dim]:
        return Decision((REPLICATE, here, *call.places[2:]), (here,))  # each rank looks its own tokens up
    return Decision((REPLICATE, ids, *call.places[2:]), (ids if ids.shards else REPLICATE,))


def _embedding_backward(call: Call) -> Decision:
    rank = len(call.ins[0].shape)
    if call.weight.shards and call.weight.dim == 0:
        return Decision((REPLICATE, REPLICATE), (shard(0),), ("num_weights",))
    if call.weight.shards:
        return Decision((shard(rank - 1), REPLICATE), (shard(1),))
    grad = settled(call.places[0], call)
    if grad.shards and grad.dim < len(call.ins[1].shape):
        return Decision((grad, grad), (PARTIAL,))
    return Decision((REPLICATE, REPLICATE), (REPLICATE,))


def _copy(call: Call) -> Decision | None:
    """Copies are pointwise, but for those that make a dim longer."""
    if call.function in ("slice_backward", "select_backward", "constant_pad_nd", "slice_scatter", "flip", "roll"):
        place = settled(call.places[0], call) if call.places else REPLICATE
        if call.places[0].partial and call.summing[0]:
            return Decision(call.places, (PARTIAL,) * len(call.outs))
        if not place.shards:
            return Decision((place, *call.places[1:]), (place,) * len(call.outs))
        before, after = call.ins[0].shape, call.outs[0].shape
        dim = _dim(call, len(after))
        if len(before) + 1 == len(after) and dim is not None:  # a selected index goes back to its place
            return Decision((place, *call.places[1:]), (place.at(place.dim + (dim <= place.dim)),))
        if len(before) == len(after) and (before[place.dim] == after[place.dim] or not place.tokens):
            return Decision((place, *call.places[1:]), (place,) * len(call.outs))
        return None
    return _pointwise(call)


def _collective(call: Call) -> Decision | None:
    """A collective along another axis moves each rank's part, or its part of a sum, as it would the whole."""
    if len(call.ins) != len(call.outs):
        return None
    if any(p.partial for p in call.places) and "all_gather" not in call.function and "all_to_all" not in call.function:
        return None
    divided = ("bytes",) if any(p.shards for p in call.places) else ()
    return Decision(call.places, call.places, divided)


RULES: Final[Mapping[OpKind, Rule]] = {
    OpKind.VIEW: _view,
    OpKind.ELEMENTWISE: _pointwise,
    OpKind.HOST: _made_like,
    OpKind.COPY: _copy,
    OpKind.NORM: _norm,
    OpKind.SOFTMAX: _softmax,
    OpKind.REDUCTION: _reduction,
    OpKind.GATHER_SCATTER: _gather_scatter,
    OpKind.EMBEDDING: _embedding,
    OpKind.COLLECTIVE: _collective,
}
