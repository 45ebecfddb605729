"""At which sizes a model is run so that what is found holds for all: the points, and the range they vouch for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = Mapping[str, int]

_PRIMES = {
    "batch": (3, 5, 7),
    "seq": (19, 29, 43),
    "context": (37, 61, 101),
}
_OTHER_PRIMES = ((23, 31, 47), (53, 67, 83), (59, 71, 97))
_FAR = (2053, 1031, 1283)
MAX_STEP = 4200
"""Windows and chunks up to here are stepped over; a mask of this length squared is still small."""

_STEPS = (
    "sliding_window", "attention_chunk_size", "local_attention", "window_size", "chunk_size", "mamba_chunk_size",
    "attention_window", "block_size", "max_window_size", "max_seq_len",
)  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """Points to record at, and the range of each symbol that they vouch for (None: no upper end)."""

    points: list[dict[str, int]]
    minimum: dict[str, int]
    maximum: dict[str, int | None]


def choose_points(free: Sequence[str], fixed: Mapping[str, int], confirm: Mapping[str, int]) -> list[dict[str, int]]:
    """Three points over the *free* symbols, *fixed* ones the same in each; the third takes the sizes in *confirm*."""
    values = _primes(free)
    points = [dict(fixed) | {name: values[name][i] for name in free} for i in range(3)]
    points[2].update({name: size for name, size in confirm.items() if name in free})
    return points


def _primes(free: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    others = iter(_OTHER_PRIMES)
    return {name: _PRIMES[name] if name in _PRIMES else next(others) for name in free}


def config_steps(config: Any) -> list[int]:
    """Lengths at which *config* (its text part) says that the model works in windows or chunks, ascending."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found: set[int] = set()
    for name in _STEPS:
        value = getattr(text, name, None)
        found.update(v for v in (value if isinstance(value, list) else [value]) if type(v) is int and v > 1)
    if getattr(text, "use_sliding_window", True) is False:
        found.discard(getattr(text, "sliding_window", None) or 0)
    return sorted(found)


def surveys(
    free: Sequence[str],
    fixed: Mapping[str, int],
    wanted: Mapping[str, int],
    limits: Mapping[str, int | None],
    steps: Sequence[int],
) -> Iterator[Survey]:
    """Ways to look at a model, the widest range first.

    From the smallest sizes to beyond every window; without sizes of two; up to the *wanted* sizes only; and, where
    the model is another one at small sizes, from the wanted sizes up.
    """
    lengths = [n for n in free if n != "batch"]
    small = choose_points(free, fixed, {})
    for p in small:
        p.update({n: min(p[n], limits.get(n) or p[n]) for n in lengths})
    near = dict(fixed) | {n: wanted[n] for n in free}
    low = dict(small[0]) | {n: 1 if n == "context" else 2 for n in lengths}
    least = {n: min(low[n] if n in lengths else 2, wanted[n]) for n in free}
    if not lengths:
        yield Survey([*small, near], least, dict.fromkeys(free, None))
        return
    tops = {n: _top(limits.get(n), steps) for n in lengths}
    yield Survey([*small, near, *_beyond(lengths, small, limits, steps), low], least, tops)
    least |= {n: min(small[0][n], wanted[n]) for n in lengths}
    yield Survey([*small, near, *_beyond(lengths, small, limits, steps)], least, tops)
    edge = min((w - 2 for w in steps if w - 2 > max(wanted[n] for n in lengths)), default=0)
    ends = [] if edge <= max(small[2][n] for n in lengths) or edge > MAX_STEP else [_at_edge(small[1], edge, lengths)]
    highs: dict[str, int | None] = {n: max(small[2][n], wanted[n], *(p[n] for p in ends)) for n in lengths}
    for below in ([low], []):
        floor = {n: min(p[n] for p in [*small, near, *below]) for n in free}
        yield Survey([*small, near, *ends, *below], floor, highs)
    if not all(wanted[n] > small[2][n] for n in lengths):
        return
    large = [dict(p) | {n: wanted[n] + p[n] - small[0][n] for n in lengths} for p in small]
    if any(large[2][n] > (limits.get(n) or large[2][n]) for n in lengths):
        return
    least |= {n: wanted[n] for n in lengths}
    beyond = [p for p in _beyond(lengths, small, limits, steps) if all(p[n] > wanted[n] for n in lengths)]
    if beyond:
        yield Survey([*large, near, *beyond], least, tops)
    yield Survey([*large, near], least, {n: large[2][n] for n in lengths})


def _at_edge(base: Point, edge: int, lengths: Sequence[str]) -> dict[str, int]:
    """The point that fills a window of *edge* with all of its lengths together."""
    rest = sum(base[n] for n in lengths[1:])
    return dict(base) | {lengths[0]: edge - rest}


def _beyond(
    lengths: Sequence[str], small: Sequence[Point], limits: Mapping[str, int | None], steps: Sequence[int]
) -> list[dict[str, int]]:
    """Points far out, and at, behind and well beyond every window of *steps* that is not too long."""
    sizes = [_FAR, *((w + d,) * 3 for w in steps for d in (0, 1, 37) if w + 37 <= MAX_STEP)]
    points: list[dict[str, int]] = []
    for n, size in enumerate(sizes):  # batches differ: what is beyond a window is not one number by chance
        point = dict(small[n % 3]) | {
            name: min(size[i % 3], limits.get(name) or size[i % 3]) for i, name in enumerate(lengths)
        }
        if point not in points:
            points.append(point)
    return points


def _top(limit: int | None, steps: Sequence[int]) -> int | None:
    """The most a length may be: what its position table holds, or the first window too long to step over."""
    ends = [s for s in (limit, next((w for w in steps if w + 37 > MAX_STEP), None)) if s is not None]
    return min(ends, default=None)
