"""Placements: how a tensor lies on the ranks of one axis of the mesh, as in PyTorch's DTensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from foretrace.ir import DimLike, Role, Shape, Tensor
from foretrace.transforms.plan import PlanError


class Sort(StrEnum):
    """The three ways to lie."""

    REPLICATE = "replicate"
    SHARD = "shard"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicate: every rank has all of it. Shard: a part along `dim`. Partial: the ranks' tensors add up to it."""

    sort: Sort
    dim: int = -1
    extent: DimLike | None = None
    """Of a merged dim (batch · seq), the size of the part that is divided; None: the dim itself is."""
    right: DimLike = 1
    """Elements of the merged dim from one index of the divided part to the next."""
    tokens: bool = False
    """What is divided are tokens (sequence parallel), not features or heads."""

    @property
    def shards(self) -> bool:
        """True for `Sort.SHARD`."""
        return self.sort is Sort.SHARD

    @property
    def partial(self) -> bool:
        """True for `Sort.PARTIAL`."""
        return self.sort is Sort.PARTIAL

    def at(self, dim: int) -> "Placement":
        """The same, of another *dim*."""
        return Placement(self.sort, dim, self.extent, self.right, self.tokens)

    def __str__(self) -> str:
        return f"Shard({self.dim})" if self.shards else self.sort.capitalize()


REPLICATE: Final = Placement(Sort.REPLICATE)
PARTIAL: Final = Placement(Sort.PARTIAL)


def shard(dim: int, tokens: bool = False) -> Placement:
    """A part along *dim*."""
    return Placement(Sort.SHARD, dim, tokens=tokens)


def local_shape(shape: Shape, place: Placement, ranks: int, padded: bool = False) -> Shape:
    """The shape of a rank's part. Raises `PlanError` where a known size does not divide, unless it is *padded*."""
    if not place.shards:
        return shape
    size = shape[place.dim]
    divided = size if place.extent is None else place.extent
    if isinstance(divided, int) and divided % ranks:
        if not padded:
            raise PlanError(f"{divided} does not divide among {ranks}")
        size = size + ranks - divided % ranks
    return (*shape[: place.dim], size // ranks, *shape[place.dim + 1 :])


def token_sizes(tensors: Iterable[Tensor]) -> tuple[DimLike, DimLike] | None:
    """(batch, seq) of a model: the sizes of its first table of token ids; None where it takes none."""
    for tensor in tensors:
        if tensor.role is Role.INPUT and not tensor.dtype.is_float and len(tensor.shape) == 2:
            return tensor.shape[0], tensor.shape[1]
    return None


def token_dim(shape: Shape, tokens: tuple[DimLike, DimLike]) -> Placement | None:
    """How a tensor [batch, seq, ...] or [batch · seq, ...] divides along the sequence; None where it has none."""
    batch, seq = tokens
    if len(shape) > 1 and shape[1] == seq and shape[0] in (batch, 1):
        return shard(1, tokens=True)
    if shape and shape[0] == batch * seq:
        return Placement(Sort.SHARD, 0, seq, 1, tokens=True)
    return None
