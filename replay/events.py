"""A result as a `Trace`, the type that measured runs have too."""

from typing import TYPE_CHECKING, Any

import numpy as np

from foretrace.ir import evaluate_dims
from foretrace.traces import Trace
from foretrace.traces.memory import KEY as MEMORY
from foretrace.traces.memory import thin_memory

from .columns import KINDS
from .engine import seconds_from_ticks
from .lower import Stream
from .table import OpTable

if TYPE_CHECKING:
    from .result import Result

HOST_KIND = "launch"
"""The kind of an event on the host's stream: what it takes to issue the op of that name."""
ONCE = "launch step"
"""The name of the host event that belongs to no op: guards, a graph launch."""


def predicted_trace(result: "Result") -> Trace:
    """The trace of *result*: kernels on ``compute`` and ``communication``, issuing on ``host``, by start.

    Operator FLOPs are those of all units, bytes those read and written. On a synchronous accelerator dispatch is a
    part of its operator: one event for both, on ``compute``, and views are operators like the others.
    """
    program, timeline, table = result.program, result.timeline, result.table
    start, duration = seconds_from_ticks(timeline.start), seconds_from_ticks(timeline.schedule.duration)
    nodes = np.arange(program.op.size)
    kernel = program.on_device
    if program.synchronous:
        host_node = np.full(table.ops + 1, -1)  # the last answers for what belongs to no op
        host_node[program.op[~kernel]] = nodes[~kernel]
        own = np.where(kernel, host_node[program.op], -1)
        start[own >= 0] = start[own[own >= 0]]
        duration[own >= 0] += duration[own[own >= 0]]
        nodes = np.setdiff1d(nodes, own)
    nodes = nodes[np.lexsort((nodes, timeline.start[nodes]))]
    op = program.op[nodes]
    kernel = kernel[nodes] | (program.synchronous & (op >= 0))
    row = table.row[op] if table.ops else op
    flops = table.matrix_flops + table.vector_flops + table.special_flops
    ops = [result.table.graph.ops[i] if i >= 0 else None for i in op.tolist()]
    shapes = input_shapes(table)
    columns: dict[str, Any] = {
        "name": [o.name if o else ONCE for o in ops],
        "kind": [
            str(KINDS[code]) if k else HOST_KIND
            for k, code in zip(kernel.tolist(), table.kind[row].tolist(), strict=True)
        ],
        "module": [o.module if o else "" for o in ops],
        "phase": [o.phase if o else "" for o in ops],
        "stream": [
            Stream.COMPUTE.name.lower() if k and s == Stream.HOST else Stream(s).name.lower()
            for k, s in zip(kernel.tolist(), program.stream[nodes].tolist(), strict=True)
        ],
        "shapes": [shapes[r] if o else "" for r, o in zip(row.tolist(), ops, strict=True)],
        "op_id": op,
        "correlation": op,
        "start_s": start[nodes],
        "duration_s": duration[nodes],
        "bytes_moved": np.where(kernel, table.bytes[row], 0.0),
        "flops": np.where(kernel, flops[row], 0.0),
    }
    return Trace.from_columns(columns, **description(result))


def description(result: "Result") -> dict[str, Any]:
    """The meta fields of any trace of *result*; without a plan its memory over time is among them."""
    info: dict[str, Any] = {
        "warnings": list(result.warnings),
        "execution": result.execution,
        "costs": result.costs,
        "symbols": dict(result.bindings),
    }
    if result.plan:
        info["plan"] = result.plan
    else:
        info[MEMORY] = thin_memory(seconds_from_ticks(result.footprint.ticks), result.footprint.bytes)
    plan = f"{result.plan}, " if result.plan else ""
    return {
        "title": f"{result.model} on {result.system}, {plan}{result.execution}",
        "source": "predicted",
        "system": result.system,
        "model": result.model,
        "step_s": float(result.time_s),
        "info": info,
    }


def input_shapes(table: OpTable) -> list[str]:
    """[r] The shapes of each row's inputs at the bound sizes, ``[1,16,768][768,2304]``; 0-dim ones left out."""
    graph = table.graph
    shapes = [[graph.tensors[t].shape for t in graph.ops[i].inputs] for i in table.first.tolist()]
    sizes = iter(evaluate_dims([d for row in shapes for s in row for d in s], table.bindings).astype(np.int64).tolist())
    return ["".join(f"[{','.join(str(next(sizes)) for _ in s)}]" for s in row if s) for row in shapes]
