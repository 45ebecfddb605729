"""Training frameworks as executions: a host that waits for its passes, kernels at a sustained pace, the optimizer."""

from dataclasses import replace

import numpy as np
import pytest

from foretrace.hardware import load_system
from foretrace.ir import DTYPES, GraphError, OpKind, Role, evaluate_dim
from foretrace.replay.costs import load_costs
from foretrace.replay.costs.physics.facts import GENERIC, facts_of
from foretrace.replay.costs.physics.gemm import Gemms, price_gemms
from foretrace.replay.costs.physics.hosting import Hosting, Pace
from foretrace.replay.costs.physics.profile import load_profile
from foretrace.replay.lower import launching, load_execution, lower_training
from foretrace.replay.table import tabulate
from foretrace.transforms import Fuse, apply
from foretrace.transforms.master_weights import MasterWeights
from tests.replay.models import system, transformer
from tests.replay.parallel.models import KERNEL_S, replay, training

pytestmark = pytest.mark.slow

LAYERS = training(layers=8, ends=False, optimizer=False)


@pytest.mark.parametrize("name", ["megatron", "nanotron"])
def test_the_host_of_a_framework_takes_its_time_for_each_kernel(name: str) -> None:
    hosting: Hosting = load_profile(name).constants("hosting", GENERIC)
    on = system(dispatch_s=1e-6)
    program = load_execution(name).lower(LAYERS, on)
    phases = np.array([op.phase for op in LAYERS.ops])[launching(LAYERS)]
    expected = 1e-6 * np.where(phases == "forward", hosting.forward, hosting.backward)
    assert program.host_s[~program.on_device] == pytest.approx(expected)


def test_collectives_of_tensor_parallel_ranks_can_hold_the_host_up() -> None:
    ops = [op for op in LAYERS.ops if op.kind is OpKind.MATMUL][:1]
    held = replace(LAYERS, ops=(replace(ops[0], attributes={**ops[0].attributes, "group": "tp", "ranks": 4}),))
    on = system(dispatch_s=1e-6)
    free, waiting = (lower_training(held, on, "megatron", Hosting(1.0, 1.0), step_s) for step_s in (0.0, 1e-3))
    assert (waiting.host_s - free.host_s).sum() == pytest.approx(3e-3)


@pytest.mark.parametrize("pp", [2, 4])
def test_a_host_that_waits_takes_the_sum_of_passes_and_never_less_than_one_that_runs_ahead(pp: int) -> None:
    """Passes begin when their input is there: with a slow host a pipeline takes m + pp - 1 times both passes."""
    dispatch_s, m = KERNEL_S, 4
    on = system(dispatch_s=dispatch_s).model_copy(update={"count": pp})
    found = replay(LAYERS, f"pp={pp}", m, on, execution="megatron")
    eager = replay(LAYERS, f"pp={pp}", m, on, execution="eager")
    assert found.time_s > eager.time_s
    hosting: Hosting = load_profile("megatron").constants("hosting", GENERIC)
    kernels = apply((Fuse(inside=True),), LAYERS)
    forward = sum(op.phase == "forward" for op in kernels.ops) * hosting.forward
    backward = sum(op.phase == "backward" for op in kernels.ops) * hosting.backward
    assert found.time_s >= (m + pp - 1) / pp * dispatch_s * (forward + backward) * 0.99


def test_kernels_of_a_framework_run_at_its_pace() -> None:
    pace: Pace = load_profile("megatron").constants("pace", GENERIC)
    table = tabulate(LAYERS, {"batch": 512})
    on = load_system("a100-sxm-80gb")
    plain, slow = (load_costs("physics").price(table, on, software).seconds for software in ("eager", "megatron"))
    matrix = table.of_kind({OpKind.MATMUL})
    assert slow[matrix] == pytest.approx(plain[matrix] * pace.kernels)
    streams = ~matrix & (plain > 0)
    assert slow[streams] == pytest.approx(plain[streams] * pace.streams)


def test_fusion_inside_modules_keeps_to_them_and_leaves_the_models_own() -> None:
    graph = transformer()
    kept = apply((Fuse(inside=True),), graph)
    whole = apply((Fuse(),), graph)
    assert len(whole.ops) <= len(kept.ops) <= len(graph.ops)
    modules = {op.module for op in graph.ops}
    assert all(op.module in modules and op.module for op in kept.ops if "fused" in op.attributes)


@pytest.mark.parametrize(("gradient", "bytes_"), [("float32", 4), ("float16", 2)])
def test_the_mixed_precision_optimizer_moves_its_bytes_once(gradient: str, bytes_: int) -> None:
    graph = MasterWeights(gradient).run(LAYERS)
    elements = sum(evaluate_dim(t.elements, {}) for t in LAYERS.with_role(Role.PARAMETER))
    norm, adam = graph.ops[-2:]
    assert {op.phase for op in (norm, adam)} == {"optimizer"}
    assert norm.work.bytes_read == bytes_ * elements
    assert adam.work.bytes == (bytes_ + 12 + 12 + 2) * elements
    made = graph.tensors[len(LAYERS.tensors) :]
    states = sum(evaluate_dim(t.bytes, {}) for t in made if t.role is Role.OPTIMIZER_STATE)
    assert states == 2 * 12 * elements  # before and after, of the same storage
    with pytest.raises(GraphError, match="already"):
        MasterWeights().run(graph)


@pytest.mark.parametrize(("dtype", "slower"), [("float16", True), ("bfloat16", True), ("float32", False)])
def test_rows_that_are_no_multiples_of_16_bytes_cost_half_precision_products(dtype: str, slower: bool) -> None:
    facts = facts_of(load_system("a100-sxm-80gb").accelerator, DTYPES[dtype])
    constants = load_profile("serving").constants("gemm", facts.pipeline)
    element = np.full(2, DTYPES[dtype].bits / 8)
    k, n = np.full(2, 2048.0), np.array([50304.0, 50257.0])
    shapes = Gemms(np.ones(2), np.full(2, 4096.0), n, k, element, element, element)
    padded, odd = price_gemms(shapes, facts, constants)[0]
    assert (odd > 2 * padded) == slower
    assert slower or odd == pytest.approx(padded, rel=0.05)
