"""Where a sharded dim goes in a view: reshapes by their products, transposes and slices by their shapes."""

from collections.abc import Sequence

from foretrace.ir import DimLike, Shape, prod

from .placement import Placement, Sort

RESHAPES = frozenset("view _unsafe_view reshape unsqueeze squeeze flatten unflatten _reshape_alias".split())
TRANSPOSES = frozenset("t transpose permute movedim mT swapaxes numpy_T t_ transpose_".split())
PARTS = frozenset("slice split split_with_sizes chunk narrow unbind select tensor_split unfold diagonal".split())


def moved(function: str, before: Shape, after: Shape, place: Placement) -> Placement | None:
    """The placement of a view of shape *after* of a tensor of shape *before* that lies as *place*.

    None where the view cannot be taken of a part.
    """
    if before == after and function not in TRANSPOSES:
        return place
    if function in RESHAPES:
        return _reshaped(before, after, place)
    if function in TRANSPOSES:
        return _transposed(function, before, after, place)
    if function == "expand":
        return place.at(place.dim + len(after) - len(before))
    if function in PARTS:
        return _part(before, after, place)
    if before[: place.dim + 1] == after[: place.dim + 1]:  # what happens behind the divided dim does not matter
        return place
    return None


def _reshaped(before: Shape, after: Shape, place: Placement) -> Placement | None:
    """The divided part spans the elements from `right` to `top` of its group; it goes to the dim that ends there.

    A dim that goes on beyond it (batch · seq) keeps the part as an `extent` of its own.
    """
    for first, last, start, stop in groups(before, after):
        if not first <= place.dim < last:
            continue
        right = prod(before[place.dim + 1 : last]) * place.right
        top = right * (before[place.dim] if place.extent is None else place.extent)
        inner: DimLike = 1
        for j in range(stop - 1, start - 1, -1):
            here = inner * after[j]
            if here == top and after[j] != 1:
                return Placement(Sort.SHARD, j, tokens=place.tokens)
            if _multiple(here, top):
                step = right // inner if _multiple(right, inner) else 1
                return Placement(Sort.SHARD, j, top // (inner * step), step, place.tokens)
            inner = here
    return None


def _multiple(whole: DimLike, part: DimLike) -> bool:
    return (whole // part) * part == whole


def groups(before: Shape, after: Shape) -> list[tuple[int, int, int, int]]:
    """Runs of dims of equal products: (first, last) of *before*, (first, last) of *after*, from the left.

    Sizes of one join the group on their left.
    """
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        left: DimLike = before[i] if i < len(before) else 1
        right: DimLike = after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while left != right:
            if _less(left, right) and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif i < len(before):
                left, i = left * before[i], i + 1
            else:
                break
        found.append((first, min(i, len(before)), start, min(j, len(after))))
    return found


def _less(a: DimLike, b: DimLike) -> bool:
    """Which product is to grow: the one that divides the other."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if isinstance(a, int):
        return True
    if isinstance(b, int):
        return False
    return len(str(a)) < len(str(b)) if b // a * a != b else True


def _transposed(function: str, before: Shape, after: Shape, place: Placement) -> Placement | None:
    if len(before) != len(after):
        return None
    if len(before) == 2 or function == "t":
        return place.at(len(before) - 1 - place.dim)
    candidates = [j for j, size in enumerate(after) if size == before[place.dim]]
    changed = [j for j in candidates if before[j] != after[j]]
    if before[place.dim] == after[place.dim] and (not changed or before != after):
        if before == after and len(before) == 3:
            return place.at({0: 0, 1: 2, 2: 1}[place.dim])  # a transpose of equal dims: the last two
        return place
    return place.at((changed or candidates)[0]) if candidates else None


def _part(before: Shape, after: Shape, place: Placement) -> Placement | None:
    """A slice keeps a dim that it does not cut; parts of divided features are divided themselves.

    Weights that several results are packed in (queries, keys and values; gate and up) are laid out so that every
    rank's part holds its part of each.
    """
    if len(before) == len(after):
        cut = before[place.dim] != after[place.dim]
        return None if cut and (place.tokens or place.extent is not None) else place
    if len(before) == len(after) + 1:  # select, unbind: one dim goes
        for gone in range(len(before)):
            if (*before[:gone], *before[gone + 1 :]) == after:
                if gone == place.dim:
                    continue
                return place.at(place.dim - (gone < place.dim))
    return None


def aligned(places: Sequence[Placement], ranks_of: Sequence[int], rank: int) -> list[Placement]:
    """*places* of tensors of *ranks_of* dims, counted in a result of *rank* dims that they broadcast to."""
    return [p.at(p.dim + rank - r) if p.shards else p for p, r in zip(places, ranks_of, strict=True)]
