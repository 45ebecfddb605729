"""What `foretrace inspect` says of a graph: sizes, kinds, repeated blocks, as plain data."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .blocks import Block, count_layers, find_blocks, folded_size
from .dim import evaluate_dim, evaluate_dims
from .graph import FREE_KINDS, MATRIX_KINDS, Graph, OpKind, Role


def summarize(graph: Graph, bindings: Mapping[str, int]) -> dict[str, Any]:
    """The summary of *graph* at the bound sizes, ready for JSON; FLOPs are those of matmul-like and attention ops."""
    return {
        "name": graph.name,
        "phase": graph.phase,
        "metadata": dict(graph.metadata),
        "symbols": {
            s.name: {"value": bindings[s.name], "minimum": s.minimum, "maximum": s.maximum, "meaning": s.description}
            for s in graph.symbols.values()
        },
        "parameters": graph.parameter_count,
        "parameter_bytes": graph.parameter_bytes,
        "ops": len(graph.ops),
        "ops_by_kind": dict(Counter(str(op.kind) for op in graph.ops).most_common()),
        "flops": graph.flops(bindings),
        "layers": count_layers(graph),
        "folded_ops": folded_size(graph),
        "blocks": [_block(graph, block, bindings) for block in find_blocks(graph)],
        "unmodelled_ops": sorted({op.name for op in graph.ops if op.kind is OpKind.OTHER}),
    }


def _block(graph: Graph, block: Block, bindings: Mapping[str, int]) -> dict[str, Any]:
    ops = [graph.ops[i] for i in block.representative]
    matrix = [op.work.matrix_flops for op in ops if op.kind in MATRIX_KINDS]
    read = {graph.tensors[graph.tensors[t].storage] for op in ops for t in op.inputs}
    return {
        "module": block.path,
        "repeats": block.repeats,
        "indices": list(block.indices),
        "ops": len(ops),
        "kernels": sum(op.kind not in FREE_KINDS for op in ops),
        "parameters": sum(int(evaluate_dim(t.elements, bindings)) for t in read if t.role is Role.PARAMETER),
        "flops": int(evaluate_dims(matrix, bindings).sum()),
        "bytes": int(evaluate_dims([op.work.bytes for op in ops], bindings).sum()),
    }
