"""Where a divided dim goes in a view, held against numpy: the part of the view is the view of the part."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foretrace.ir import symbol
from foretrace.transforms.shard.placement import Placement, Sort, local_shape, shard
from foretrace.transforms.shard.views import moved

B, S = symbol("batch"), symbol("seq")


def part(array: np.ndarray, place: Placement, rank: int, ranks: int) -> np.ndarray:
    """The part of *array* that *rank* has."""
    size = array.shape[place.dim]
    extent = size if place.extent is None else int(str(place.extent))
    right = int(str(place.right))
    index = np.arange(size)
    inside = (index // right) % extent
    each = extent // ranks
    return array.take(index[(inside // each) == rank], axis=place.dim)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same elements, by merging and splitting neighbouring factors."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5))

    def merged() -> tuple[int, ...]:
        shape = [factors[0]]
        for f in factors[1:]:
            if draw(st.booleans()):
                shape[-1] *= f
            else:
                shape.append(f)
        return tuple(shape)

    return merged(), merged()


@given(reshapes(), st.data())
def test_the_part_of_a_reshape_is_the_reshape_of_the_part(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    before, after = shapes
    dim = data.draw(st.integers(0, len(before) - 1))
    ranks = 2
    assume(before[dim] % ranks == 0)
    place = moved("view", before, after, shard(dim))
    assume(place is not None and place.shards)
    assert place is not None
    extent = after[place.dim] if place.extent is None else place.extent
    assume(int(str(extent)) % ranks == 0)  # else the plan is refused
    whole = np.arange(np.prod(before)).reshape(before)
    for rank in range(ranks):
        mine = part(whole, shard(dim), rank, ranks).reshape(local_shape(after, place, ranks))
        assert (mine == part(whole.reshape(after), place, rank, ranks)).all()


@pytest.mark.parametrize(
    ("function", "before", "after", "dim", "expected"),
    [
        ("view", (B, S, 2048), (B, S, 32, 64), 2, 2),
        ("view", (B, S, 32, 64), (B, S, 2048), 2, 2),
        ("transpose", (B, S, 32, 64), (B, 32, S, 64), 2, 1),
        ("transpose", (B, S, 64, 64), (B, 64, S, 64), 2, 1),
        ("t", (64, 64), (64, 64), 0, 1),
        ("transpose", (8, 64, 64), (8, 64, 64), 1, 2),
        ("view", (B, 8, 4, S, 64), (B, 32, S, 64), 1, 1),
        ("unsqueeze", (B, S, 64), (B, 1, S, 64), 2, 3),
        ("squeeze", (B, S, 1, 64), (B, S, 64), 3, 2),
        ("expand", (1, 8, S, 64), (B, 8, S, 64), 1, 1),
        ("split", (B, S, 2304), (B, S, 768), 2, 2),
        ("select", (B, S, 16, 3, 64), (B, S, 16, 64), 2, 2),
        ("view_as_complex", (B, 16, S, 32, 2), (B, 16, S, 32), 1, 1),
    ],
)
def test_views_of_real_models(function: str, before: tuple, after: tuple, dim: int, expected: int) -> None:
    assert moved(function, before, after, shard(dim)) == shard(expected)


def test_tokens_merge_with_the_batch_and_part_from_it() -> None:
    merged = moved("view", (B, S, 2048), (B * S, 2048), shard(1, tokens=True))
    assert merged == Placement(Sort.SHARD, 0, S, 1, tokens=True)
    assert local_shape((B * S, 2048), merged, 8) == ((B * S) // 8, 2048)
    assert moved("view", (B * S, 2048), (B, S, 2048), merged) == shard(1, tokens=True)
    assert moved("t", (B * S, 2048), (2048, B * S), merged) == Placement(Sort.SHARD, 1, S, 1, tokens=True)


def test_a_slice_of_the_sequence_needs_all_of_it() -> None:
    assert moved("slice", (B, S, 64), (B, S - 1, 64), shard(1, tokens=True)) is None
    assert moved("select", (B, S, 64), (B, 64), shard(1, tokens=True)) is None
