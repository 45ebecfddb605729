"""Plans at scale: Llama-3.1-405B on 1 k to 128 k GPUs, and a thousand plans of one model.

Goals: a 16,384-GPU step from a saved graph to its Result in 2 s warm on one core and 1 GB, at a cost that does not grow
with the GPUs; 1,000 plans in 60 s on 2 cores.
"""

import resource
import time
from pathlib import Path

import pytest

from foretrace import capture_graph, load_graph, replay_graph, save_graph
from foretrace.plans import rank_plans
from foretrace.transforms.candidates import Space, plans_for


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3.1-405B's training step."""
    file = tmp_path_factory.mktemp("plans") / "405b.graph"
    save_graph(capture_graph("Llama-3.1-405B", phase="train", optimizer="adamw"), file)
    return file


@pytest.mark.parametrize("gpus", [1_024, 16_384, 131_072])
def test_a_step_of_405b(graph_file: Path, gpus: int) -> None:
    plan = f"tp=8,sp=1,pp=16,dp={gpus // 128},schedule=1f1b"
    took = []
    for _ in range(3):
        start = time.process_time()
        graph = load_graph(graph_file)
        result = replay_graph(graph, f"h100-sxm:{gpus}", plan=plan, batch=gpus // 128 * 16, seq=8192)
        took.append(time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\n405B on {gpus:,} GPUs, {plan}, 16 micro-batches: {min(took):.2f} CPU-s warm of 3 (first {took[0]:.2f}), "
        f"peak of this process {memory:.2f} GB; step {result.time_s:.2f} s, MFU {result.mfu:.1%}"
    )


def test_a_thousand_plans() -> None:
    graph = capture_graph("Llama-3.1-8B", phase="train", optimizer="adamw")
    space = Space(pp=(1, 2, 4, 8, 16, 32), microbatch=(1, 2, 4, 8, 16), zero=(0, 1, 3), interleave=(1, 2))
    plans = plans_for(graph, 256, 1024, space)[:1000]
    start = time.perf_counter()
    ranked = rank_plans(graph, "h100-sxm:256", batch=1024, seq=8192, plans=plans, jobs=2)
    took = time.perf_counter() - start
    fits = [r for r in ranked if r.fits]
    print(
        f"\n{len(plans):,} plans of Llama-3.1-8B on 256 GPUs, 2 processes: {took:.0f} s, {took / len(plans) * 1e3:.0f} "
        f"ms a plan; {len(fits)} fit, best {fits[0].plan}: {fits[0].time_s:.2f} s"
    )
