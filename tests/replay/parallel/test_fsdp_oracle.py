"""What a plan with zero=3 communicates against FSDP2 on a fake process group of 64 and 512 ranks."""

from collections import Counter
from functools import lru_cache

import pytest

pytest.importorskip("torch.distributed.fsdp")

from foretrace import replay_graph
from foretrace.ir import Graph, OpKind
from tests.distributed_models import SMALL, collectives_of, llama, moe

pytestmark = pytest.mark.slow

GATHER, REDUCE = "all_gather_into_tensor", "reduce_scatter_tensor"
TORCH = {"_allgather_base_": GATHER, "_reduce_scatter_base_": REDUCE}
Traffic = Counter[tuple[str, str, int, int]]
"""(phase, name, bytes, ranks) → how often a step."""


@lru_cache
def whole(kind: str) -> Graph:
    return llama() if kind == "llama" else moe()


def of_torch(graph: Graph) -> Traffic:
    found: Traffic = Counter()
    for phase in ("forward", "backward"):
        for (name, size, ranks), n in collectives_of(graph, phase).items():
            found[phase, TORCH[name.split(".")[1]], size, ranks] += n
    return found


def of_plan(graph: Graph, ranks: int) -> Traffic:
    result = replay_graph(graph, f"h100-sxm:{ranks}", plan=f"dp={ranks},zero=3,microbatch=2", batch=2 * ranks)
    assert result.parallel is not None
    run = result.parallel.run
    found: Traffic = Counter()
    for op, launches in zip(run.priced.graph.ops, run.launches.tolist(), strict=False):
        if op.kind is OpKind.COLLECTIVE and launches:
            a = op.attributes
            found[op.phase, op.name.split(".")[1], a["bytes"], a["ranks"]] += round(launches)
    return found


@pytest.mark.parametrize("world", [64, 512])
@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_layers_are_gathered_and_reduced_as_fsdp2_does(kind: str, world: int) -> None:
    """A layer is a unit for both. What is around the layers is one unit for FSDP2, and two for us: as many bytes."""
    ours = of_plan(whole(kind), world)
    theirs = of_torch(llama(dp=world) if kind == "llama" else moe(dp=world))
    layers = {key: n for key, n in theirs.items() if n >= SMALL.num_hidden_layers}
    assert layers
    assert {key: ours[key] for key in layers} == layers
    for phase, name in (("forward", GATHER), ("backward", GATHER), ("backward", REDUCE)):
        total = [sum(k[2] * n for k, n in t.items() if k[:2] == (phase, name)) for t in (ours, theirs)]
        assert total[0] == total[1]
