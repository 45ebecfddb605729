"""What a capture costs: CPU seconds after imports, and the most memory its process ever took."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from foretrace.capture import capture_graph, resolve_model
from foretrace.ir.blocks import folded_size

from .jobs import Job

WARM_UP = "gpt2"


def cost_job(job: Job, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The cost of one capture in this process, which has done nothing else.

    A small model is captured before, and the layers of this one built once: torch and transformers import much of
    themselves when first used.
    """
    capture_graph(WARM_UP, phase=job.phase)
    model = resolve_model(job.name)
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 4})
    type(model)(model.name, config, model.dtype, model.recipe).build(None, "sdpa")
    start = time.process_time()
    graph = capture_graph(model, phase=job.phase)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds, "peak_bytes": peak, "ops": len(graph.ops), "folded": folded_size(graph),
        "parameters": graph.parameter_count,
    }  # fmt: skip
