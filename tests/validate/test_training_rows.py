"""Training rows: what their columns say, the plan that is replayed, its memory, and verdicts."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foretrace.hardware import load_system
from foretrace.ir import ForetraceError
from foretrace.replay.costs import load_costs
from foretrace.row_values import Cell, Row, Verdict
from foretrace.scores import Collector, Group, Verdicts
from foretrace.training_memory import ALLOCATOR, WORKSPACE_BYTES, memory_of
from foretrace.training_plans import GPT2_VOCABULARY, MEGATRON_VOCABULARY, nanotron_split, read_run
from foretrace.training_rows import TrainingReplays, mfu_of, system_of, training_cells
from foretrace.whole_models import Replays

pytestmark = pytest.mark.slow

NANOTRON: Row = {
    "gpu": "H100-SXM", "n_gpus": 4.0, "hidden": 256.0, "layers": 4.0, "heads": 4.0, "kv_heads": 4.0, "vocab": 1024.0,
    "ffn": 512.0, "seq": 128.0, "mbs": 2.0, "grad_acc": 4.0, "dp": 2.0, "tp": 2.0, "pp": 1.0, "zero": 0.0,
    "precision": "BF16", "tied": "True", "framework": "nanotron 1F1B", "status": "Success", "step_ms": 50.0,
}  # fmt: skip
MEGATRON: Row = {
    "gpu": "A100-SXM-80GB", "n_gpus": 4.0, "hidden": 256.0, "layers": 4.0, "heads": 4.0, "seq": 128.0, "mbs": 2.0,
    "grad_acc": 4.0, "dp": 1.0, "tp": 2.0, "pp": 2.0, "precision": "FP16", "framework": "Megatron-DeepSpeed",
    "step_ms": 50.0,
}  # fmt: skip
LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 131072}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 32}


@pytest.fixture(scope="module")
def replays() -> TrainingReplays:
    costs = load_costs("physics")
    return TrainingReplays(costs, Replays(costs).graph)


def test_a_row_of_nanotron_divides_the_sequence_and_keeps_its_micro_batches() -> None:
    run = read_run(NANOTRON)
    assert (str(run.plan), run.micro_batches) == ("tp=2,sp=1,dp=2,microbatch=2", 4)
    assert (run.framework.execution, run.framework.gradient, run.split) == ("nanotron", "float32", None)
    assert json.loads(run.what.model)["tie_word_embeddings"] is True


@pytest.mark.parametrize(("tp", "vocabulary"), [(2.0, MEGATRON_VOCABULARY), (1.0, GPT2_VOCABULARY)])
def test_a_row_of_megatron_is_a_gpt_with_even_stages(tp: float, vocabulary: int) -> None:
    run = read_run({**MEGATRON, "tp": tp, "dp": 2 / tp})
    model = json.loads(run.what.model)
    assert (model["model_type"], model["vocab_size"], model["n_inner"]) == ("gpt2", vocabulary, 1024)
    assert (run.split, run.plan.sp, run.what.attention) == ((2, 2), False, "eager")


def test_the_inner_width_follows_from_the_parameters_where_only_those_are_stated() -> None:
    row = {**NANOTRON, "hidden": 2048.0, "layers": 16.0, "vocab": 131072.0, "params_b": 1.34, "ffn": float("nan")}
    assert json.loads(read_run(row).what.model)["intermediate_size"] == 8192


def test_names_notes_and_sharding() -> None:
    named = {
        "model": "megatron-22B",
        "n_gpus": 8.0,
        "tp": 8.0,
        "pp": 1.0,
        "mbs": 4.0,
        "n_microbatch": 1.0,
        "seq": 2048.0,
    }
    row = {
        **named,
        "note": "recompute=selective + sequence parallel",
        "framework": "Megatron-LM 2022",
        "precision": "FP16",
    }
    run = read_run(row)
    assert (run.plan.recompute, run.plan.sp, run.micro_batches) == ("selective", True, 1)
    sharded = {**row, "model": "Llama3 70B 2-node", "framework": "NeMo Automodel", "note": "", "tp": 2.0, "fsdp": 4.0}
    run = read_run({**sharded, "n_microbatch": float("nan"), "gbs": 32.0, "mbs": 2.0})
    assert (run.plan.zero, run.plan.dp, run.micro_batches) == (3, 4, 4)
    assert run.what.model == "meta-llama/Meta-Llama-3-70B"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precision": "FP8"}, "FP8"),
        ({"task": "LoRA"}, "LoRA"),
        ({"n_gpus": 8.0}, "dp=4 fills it"),
        ({"hidden": float("nan")}, "hidden"),
    ],
)
def test_what_is_not_replayed_is_said(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ForetraceError, match=said):
        read_run({**NANOTRON, **changed})


@pytest.mark.parametrize(("stages", "split"), [(2, (10, 6)), (4, (5, 5, 5, 1)), (8, (3, 2, 3, 2, 3, 2, 1, 0))])
def test_nanotron_cuts_by_parameters_with_the_head_as_a_block(stages: int, split: tuple[int, ...]) -> None:
    assert nanotron_split(LLAMA, stages) == split


@pytest.mark.parametrize(("zero", "each"), [(0.0, 20.0), (1.0, 17.0)])
def test_memory_between_steps_is_bytes_a_parameter(replays: TrainingReplays, zero: float, each: float) -> None:
    row = {**NANOTRON, "zero": zero}
    run = read_run(row)
    result = replays.run(run, load_system("h100-sxm:4"))
    elements = float(result.holdings.sums(result.holdings.elements)[0])
    memory = memory_of(run, result)
    gathered = 2 * 2 * 128 * 256
    assert memory.allocated == pytest.approx(each * elements + WORKSPACE_BYTES + 2 * gathered)
    assert memory.worst >= memory.reserved > 0
    assert memory.fits(load_system("h100-sxm:4"))
    with pytest.raises(ForetraceError, match="nanotron"):
        memory_of(read_run(MEGATRON), result)


def test_gathered_activations_pile_up_only_behind_a_slow_device(replays: TrainingReplays) -> None:
    run = read_run(NANOTRON)
    result = replays.run(run, load_system("h100-sxm:4"))
    slow = np.full_like(result.timings.host, 10**15)
    behind, ahead = (replace(result, timings=replace(result.timings, **{name: slow})) for name in ("device", "host"))
    gathered = 2 * 2 * 128 * 256
    piled = 2 * 4 * gathered / 2 * result.memory[0].in_flight
    assert memory_of(run, behind).reserved - memory_of(run, ahead).reserved == pytest.approx(ALLOCATOR * piled)


def test_cells_of_a_row(replays: TrainingReplays) -> None:
    row = {**NANOTRON, "mem_alloc_gb": 0.5, "step_ms": 0.01}
    found = list(training_cells(row, load_system("h100-sxm"), replays))
    assert found[0] == Verdict("train_out_of_memory", False, False)
    kinds = {cell.kind: cell.aside for cell in found[1:] if isinstance(cell, Cell)}
    assert kinds == {"train_memory_allocated": True, "train_step": False, "train_step_compute_bound": True}
    out = list(training_cells({**row, "status": "OOM", "step_ms": float("nan")}, load_system("h100-sxm"), replays))
    assert out == [Verdict("train_out_of_memory", True, False)]
    with pytest.raises(ForetraceError, match="ran out of memory"):
        list(training_cells({**MEGATRON, "status": "OOM"}, load_system("a100-sxm-80gb"), replays))


def test_mfu_is_six_flop_a_parameter_and_token(replays: TrainingReplays) -> None:
    run, system = read_run(NANOTRON), system_of(read_run(NANOTRON), load_system("h100-sxm"))
    parameters = replays.capture(run.what, run.at).parameter_count
    expected = 6 * parameters * 2 * 4 * 2 * 128 / (1e-3 * 989.4e12 * 4)
    assert mfu_of(run, replays, system, 1e-3) == pytest.approx(expected)


def test_steps_that_differ_in_micro_batches_share_what_is_priced(replays: TrainingReplays) -> None:
    system = load_system("a100-sxm-80gb:4")
    alone = TrainingReplays(replays.costs, replays.capture)
    times = []
    for micro_batches in (2, 4, 8):
        run = read_run({**MEGATRON, "grad_acc": float(micro_batches)})
        times.append(replays.run(run, system).timeline.makespan)
        assert alone.run(run, system).timeline.makespan == times[-1]
        alone._prepared.clear()
    assert np.diff(times).min() > 0


def test_verdicts_are_counted() -> None:
    collector, group = Collector(0), Group("a", "b", "oom")
    for measured, predicted in [(True, True), (True, True), (True, False), (False, True), (False, False)]:
        collector.judge(group, measured, predicted)
    collector.put_beside(Group("a", "b", "memory"), 1.1, 1.0, True)
    result = collector.finish("physics", [], set(), [], [])
    verdicts = result.verdicts[group]
    assert verdicts == Verdicts(2, 1, 1, 1)
    assert verdicts.joined(Verdicts(1)).n == 6
    assert (verdicts.right, verdicts.precision, verdicts.recall) == (0.6, 2 / 3, 2 / 3)
    kinds = {g["kind"]: g for g in result.to_json()["groups"]}
    assert kinds["memory"]["mape"] == pytest.approx(0.1)
    assert kinds["oom"]["recall"] == 2 / 3
    assert kinds["oom"]["mape"] is None
    assert result.overall is None
