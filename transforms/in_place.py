"""The cache written in place, as serving engines keep it."""

from dataclasses import dataclass, replace
from typing import ClassVar

from foretrace.ir import DimLike, Graph, Op, OpKind, Role, Work


@dataclass(frozen=True)
class InPlaceCache:
    """Only new keys and values move, where transformers copies all of the cache.

    The eager cache of a captured model grows by concatenation; engines allocate it beforehand, in pages
    (PagedAttention, Kwon et al. 2023).
    """

    name: ClassVar[str] = "in-place-cache"

    def run(self, graph: Graph) -> Graph:
        """*graph* with the copies of its caches reduced to what is new; nothing else changes."""
        return replace(graph, ops=tuple(self._written(graph, op) for op in graph.ops))

    def _written(self, graph: Graph, op: Op) -> Op:
        def is_cache(t: int) -> bool:
            return graph.tensors[t].role is Role.KV_CACHE

        if op.kind is not OpKind.COPY or not any(map(is_cache, op.inputs)) or not all(map(is_cache, op.outputs)):
            return op
        new: DimLike = sum((graph.tensors[t].bytes for t in op.inputs if not is_cache(t)), start=0)
        return replace(op, work=Work(bytes_read=new, bytes_written=new))
