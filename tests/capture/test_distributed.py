"""Modules that torch.distributed has parallelised: the Graph of one rank, with its collectives."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_models import (
    CASES,
    SMALL,
    Llama,
    Sizes,
    apply_fsdp,
    apply_tp,
    build_context,
    build_llama,
    build_pipeline,
    collectives_of,
    llama,
    make_mesh,
    matmuls_of,
    moe,
    open_llama,
    pipeline,
    train,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from foretrace import ForetraceError, capture_graph
from foretrace.capture.collectives import placement
from foretrace.capture.distributed import capture_distributed
from foretrace.capture.fake_world import fake_world
from foretrace.ir import Dim, Graph, OpKind, Role, evaluate_dim, load_graph, save_graph

pytestmark = pytest.mark.slow

TOKENS = SMALL.batch * SMALL.seq
HIDDEN = TOKENS * SMALL.hidden_size * 4  # bytes of the residual stream, float32
LAYERS = SMALL.num_hidden_layers
ALL_REDUCE = "_c10d_functional.all_reduce.default"
ALL_GATHER = "_c10d_functional.all_gather_into_tensor.default"
REDUCE_SCATTER = "_c10d_functional.reduce_scatter_tensor.default"
SHARDED_GATHER, SHARDED_REDUCE = "c10d._allgather_base_.default", "c10d._reduce_scatter_base_.default"


def layer_bytes(tp: int = 1, s: Sizes = SMALL) -> int:
    """Float32 bytes of one layer's weights on a rank of *tp*."""
    kv = s.num_key_value_heads * s.head_dim
    matrices = s.hidden_size * (2 * s.hidden_size + 2 * kv + 3 * s.intermediate_size)
    return 4 * (matrices // tp + 2 * s.hidden_size)


def ends_bytes(tp: int = 1, s: Sizes = SMALL) -> int:
    """Float32 bytes of embedding, head and last norm on a rank of *tp*."""
    return 4 * (2 * s.vocab_size * s.hidden_size // tp + s.hidden_size)


def test_tensor_parallel_products_are_the_rank_s_own() -> None:
    forward = matmuls_of(llama(tp=8), "forward")
    h, i, kv = SMALL.hidden_size, SMALL.intermediate_size, SMALL.num_key_value_heads * SMALL.head_dim
    assert forward == Counter(
        {
            (TOKENS, h // 8, h): LAYERS,
            (TOKENS, kv // 8, h): 2 * LAYERS,
            (TOKENS, h, h // 8): LAYERS,
            (TOKENS, i // 8, h): 2 * LAYERS,
            (TOKENS, h, i // 8): LAYERS,
            (TOKENS, SMALL.vocab_size // 8, h): 1,
        }
    )


def test_flops_of_all_ranks_are_those_of_the_whole() -> None:
    assert 8 * llama(tp=8).flops({}) == llama().flops({})


def test_tensor_parallel_sums_activations_twice_a_layer_and_pass() -> None:
    graph = llama(tp=8)
    token = TOKENS * 4  # one float a token: the loss over a vocabulary that is split
    assert collectives_of(graph, "forward") == {(ALL_REDUCE, HIDDEN, 8): 2 * LAYERS + 1, (ALL_REDUCE, token, 8): 3}
    assert collectives_of(graph, "backward") == {(ALL_REDUCE, HIDDEN, 8): 2 * LAYERS + 1}


def test_sequence_parallel_gathers_and_scatters_instead() -> None:
    graph = llama(tp=8, sp=True, vocab_loss=False)
    logits = TOKENS * SMALL.vocab_size * 4
    assert collectives_of(graph, "forward") == {
        (ALL_GATHER, HIDDEN, 8): 2 * LAYERS + 1,
        (REDUCE_SCATTER, HIDDEN, 8): 2 * LAYERS + 1,
        (ALL_GATHER, logits, 8): 1,
    }
    assert collectives_of(graph, "backward") == {
        (ALL_GATHER, HIDDEN, 8): 2 * LAYERS + 1,
        (REDUCE_SCATTER, HIDDEN, 8): 2 * LAYERS + 1,
    }


def test_fsdp_gathers_each_layer_twice_and_the_rest_once() -> None:
    graph = llama(dp=8)
    assert collectives_of(graph) == {
        (SHARDED_GATHER, layer_bytes(), 8): 2 * LAYERS,
        (SHARDED_REDUCE, layer_bytes(), 8): LAYERS,
        (SHARDED_GATHER, ends_bytes(), 8): 1,
        (SHARDED_REDUCE, ends_bytes(), 8): 1,
    }
    gathers = [(op.phase, op.module) for op in graph.ops if op.name == SHARDED_GATHER]
    assert gathers == [
        ("forward", ""),
        ("forward", "layers.0"),
        ("forward", "layers.1"),
        ("backward", "layers.1"),
        ("backward", "layers.0"),
    ]


def test_fsdp_in_bfloat16_gathers_half_and_reduces_whole() -> None:
    found = collectives_of(llama(dp=8, bf16=True))
    assert found[SHARDED_GATHER, layer_bytes() // 2, 8] == 2 * LAYERS
    assert found[SHARDED_REDUCE, layer_bytes(), 8] == LAYERS


@pytest.mark.parametrize("rank", [0, 11, 511])
def test_a_world_of_512_has_its_groups_where_the_mesh_puts_them(rank: int) -> None:
    graph = llama(replicas=8, dp=8, tp=8, sp=True, rank=rank, optimizer="adamw")
    assert graph.metadata["mesh"] == "replicas=8,dp=8,tp=8"
    assert (graph.metadata["world_size"], graph.metadata["rank"]) == ("512", str(rank))
    groups = {
        (op.attributes["group"], op.attributes["ranks"], op.attributes["stride"], op.attributes["base"])
        for op in graph.ops
        if op.kind is OpKind.COLLECTIVE
    }
    assert groups == {
        ("tp", 8, 1, rank // 8 * 8),
        ("dp", 8, 8, rank // 64 * 64 + rank % 8),
        ("replicas", 8, 64, rank % 64),
    }
    replicated = [op for op in graph.ops if op.attributes.get("group") == "replicas"]
    sizes = Counter(op.attributes["bytes"] for op in replicated)
    assert sizes == {layer_bytes(8) // 8: LAYERS, ends_bytes(8) // 8: 1}


def test_a_shard_s_weights_and_optimizer_state_are_an_eighth() -> None:
    graph = llama(dp=8, optimizer="adamw")
    whole = llama(optimizer="adamw")
    assert 8 * graph.parameter_bytes == whole.parameter_bytes
    state = sum(t.bytes for t in graph.with_role(Role.OPTIMIZER_STATE))
    assert state == 2 * graph.parameter_bytes
    named = {t.name for t in graph.tensors if t.role is Role.GRADIENT}
    assert {t.name for t in graph.with_role(Role.PARAMETER)} <= named
    assert not [op.name for op in graph.ops if op.kind is OpKind.OTHER]


def test_gathered_weights_live_from_gather_to_last_use_and_no_longer() -> None:
    graph = llama(dp=8)
    made = [op for op in graph.ops if op.name == "fsdp.split_with_sizes_copy.default" and op.module == "layers.0"]
    assert [op.phase for op in made] == ["forward", "backward"]
    first, second = ({graph.tensors[t].storage for t in op.outputs} for op in made)
    assert not first & second
    reads = {graph.tensors[t].storage: op.phase for op in graph.ops for t in op.inputs}
    assert {reads[s] for s in first} == {"forward"}
    assert {reads[s] for s in second} == {"backward"}


def test_every_product_of_a_layer_waits_for_its_gather() -> None:
    graph = llama(dp=8)
    for phase in ("forward", "backward"):
        gather = next(
            i for i, op in enumerate(graph.ops) if (op.name, op.module, op.phase) == (SHARDED_GATHER, "layers.0", phase)
        )
        after = _reached(graph, gather)
        inside = [i for i, op in enumerate(graph.ops) if op.kind is OpKind.MATMUL and op.phase == phase]
        inside = [i for i in inside if graph.ops[i].module == "layers.0.mlp.down_proj"]
        assert any(i in after for i in inside)
        assert (set(inside) <= after) is (phase == "forward")  # the weight's own gradient needs no weight


def _reached(graph: Graph, start: int) -> set[int]:
    found = {start}
    for i, before in enumerate(graph.predecessors):
        if found.intersection(before):
            found.add(i)
    return found


def test_a_mixture_of_experts_under_fsdp_and_tensor_parallel_attention() -> None:
    graph = moe(tp=8, dp=8)
    names = Counter(name for name, _, _ in collectives_of(graph).elements())
    assert names == {SHARDED_GATHER: 2 * LAYERS + 1, SHARDED_REDUCE: LAYERS + 1, ALL_REDUCE: 2 * LAYERS}
    kinds = Counter(op.kind for op in graph.ops)
    assert kinds[OpKind.GROUPED_MATMUL] == 6 * LAYERS
    assert kinds[OpKind.OTHER] == 0


@pytest.mark.parametrize(("rank", "peers"), [(0, {1}), (1, {0, 2}), (3, {2})])
def test_a_pipeline_stage_sends_and_receives_by_phase(rank: int, peers: set[int]) -> None:
    s = Sizes(batch=8, num_hidden_layers=4)
    graph = pipeline(s, pp=4, rank=rank)
    ends = [op for op in graph.ops if op.kind is OpKind.COLLECTIVE]
    assert {op.attributes["peer"] for op in ends} == peers
    block = s.batch // 4 * s.seq * s.hidden_size * 4
    assert {(op.attributes["bytes"], op.attributes["ranks"], op.attributes["stride"]) for op in ends} == {(block, 2, 1)}
    for op in ends:
        forward = (op.name == "c10d.recv_.default") == (op.attributes["peer"] < rank)
        assert op.phase == ("forward" if forward else "backward")
    assert len(ends) == 4 * 2 * len(peers)


def test_context_parallel_takes_keys_and_values_round() -> None:
    s = Sizes(num_key_value_heads=16, num_hidden_layers=1)
    graph = capture_distributed(lambda: build_context(s, cp=4), world_size=4, rank=1, phase="train")
    attention = [op for op in graph.ops if op.kind is OpKind.ATTENTION]
    assert Counter(op.phase for op in attention) == {"forward": 4, "backward": 4}
    whole = llama(s)
    assert 4 * graph.flops({}, [OpKind.MATMUL]) == whole.flops({}, [OpKind.MATMUL])
    keys_and_values = 2 * s.batch * s.seq * s.hidden_size * 4
    assert collectives_of(graph, "forward")[ALL_GATHER, keys_and_values, 4] == 1


def test_replicas_sum_their_gradients_in_buckets() -> None:
    graph = capture_distributed(CASES["ddp"], world_size=2, phase="train")
    parameters = graph.parameter_bytes
    found = collectives_of(graph, "backward")
    assert found == collectives_of(graph)
    assert {name for name, _, _ in found} == {"c10d.allreduce_.default"}
    assert len(found) > 1
    assert sum(size for _, size, _ in found.elements()) == parameters


class On(nn.Module):
    """Asks for a device by each of the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, device="cuda")
        self.register_buffer("scale", torch.ones(8).cuda())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.to("cuda:0")) * self.scale + torch.ones(8, device=x.device)


def test_a_program_that_asks_for_gpus_gets_meta() -> None:
    def build() -> Any:
        torch.cuda.set_device(torch.device("cuda", 1))
        with torch.device("cuda"):
            model = On().to("cuda")
        fully_shard(model)
        return model, torch.randn(4, 8, device=torch.device("cuda", torch.cuda.current_device()))

    graph = capture_distributed(build, world_size=4, phase="train")
    assert collectives_of(graph, "forward") == {(SHARDED_GATHER, 4 * 72, 4): 1}


def test_the_first_fsdp_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with pytest.raises(ForetraceError, match=r"torch\.distributed\.fsdp\.fully_shard"):
        capture_distributed(lambda: (FullyShardedDataParallel(nn.Linear(8, 8)), torch.randn(4, 8)), world_size=2)


class Exchange(nn.Module):
    """Tokens go where counts, exchanged before, say."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counts = torch.full((4,), x.shape[0] // 4)
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts)
        received = torch.empty(int(theirs.sum()), 8)
        dist.all_to_all_single(received, x, theirs.tolist(), counts.tolist())
        return received @ self.weight


def test_whole_numbers_from_other_ranks_are_taken_to_be_this_one_s() -> None:
    graph = capture_distributed(lambda: (Exchange(), torch.randn(32, 8)), world_size=4, rank=2)
    assert matmuls_of(graph) == {(32, 8, 8): 1}
    assert any("each is taken to hold what this rank holds" in note for note in graph.metadata.values())
    exchange = [op for op in graph.ops if op.kind is OpKind.COLLECTIVE][-1]
    assert exchange.attributes["output_split_sizes"] == (8, 8, 8, 8)
    assert exchange.attributes["group"] == "world"


@pytest.mark.parametrize(
    "options", [{"tp": 8, "dp": 8, "sp": True, "optimizer": "adamw"}, {"dp": 8, "batch": 1}], ids=str
)
def test_batch_and_seq_are_open_where_the_function_takes_them(options: dict[str, Any]) -> None:
    graph = open_llama(**options)
    assert set(graph.symbols) == {"batch", "seq"}
    sizes = {"batch": 5, "seq": 256}
    there = llama(replace(SMALL, **sizes), **{n: v for n, v in options.items() if n != "batch"})
    assert len(graph.ops) == len(there.ops)
    for op, twin in zip(graph.ops, there.ops, strict=True):
        mine, theirs = (
            [tuple(evaluate_dim(d, sizes) for d in g.tensors[t].shape) for t in o.outputs]
            for g, o in ((graph, op), (there, twin))
        )
        assert (op.name, op.module, op.phase, mine) == (twin.name, twin.module, twin.phase, theirs)
        if op.kind is OpKind.COLLECTIVE:
            assert {n: evaluate_dim(v, sizes) if isinstance(v, Dim) else v for n, v in op.attributes.items()} == dict(
                twin.attributes
            )


def test_a_pipeline_s_batch_is_open_in_whole_micro_batches() -> None:
    def build(batch: int = 8, seq: int = 64) -> Any:
        return build_pipeline(Sizes(batch=batch, seq=seq), pp=2)

    graph = capture_distributed(build, world_size=2, phase="train")
    sends = {op.attributes["bytes"] for op in graph.ops if op.name == "c10d.send.default"}
    assert [evaluate_dim(b, {"batch": 16, "seq": 128}) for b in sends] == [16 // 4 * 128 * SMALL.hidden_size * 4]
    assert "batch is taken to be a multiple of 8: ranks divide it" in graph.metadata.values()


def test_two_micro_batches_checkpointed_then_clipped_by_a_step_of_one_s_own() -> None:
    def build() -> Any:
        mesh = make_mesh("cuda", dp=8, tp=8)
        model = Llama(SMALL)
        apply_tp(model, mesh["tp"], sp=True)
        for name, layer in model.layers.named_children():
            model.layers.register_module(name, checkpoint_wrapper(layer, preserve_rng_state=False))
        apply_fsdp(model, mesh["dp"])
        optimizer = torch.optim.AdamW(model.parameters())

        def step(model: nn.Module, tokens: torch.Tensor) -> None:
            for _ in range(2):
                train(model, tokens, True)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return model, (torch.zeros(2, 64, dtype=torch.long),), step

    graph = capture_distributed(build, world_size=64, phase="train")
    norms = [op for op in graph.ops if op.kind is OpKind.COLLECTIVE and op.phase == "optimizer"]
    assert {(op.name, op.attributes["bytes"]) for op in norms} == {
        (ALL_REDUCE, 4 * len(graph.with_role(Role.PARAMETER)))  # the norm of each, together
    }
    one = llama(tp=8, dp=8, sp=True)
    assert collectives_of(graph, "forward") == Counter({c: 2 * n for c, n in collectives_of(one, "forward").items()})
    assert sum(op.kind is OpKind.ATTENTION for op in graph.ops) == 2 * 3 * LAYERS  # forward, again, backward


def test_an_irregular_group_is_listed() -> None:
    assert placement((0, 4, 8), "tp") == {"ranks": 3, "stride": 4, "base": 0, "group": "tp"}
    assert placement((1, 2, 5), "x") == {"ranks": 3, "members": (1, 2, 5), "base": 1, "group": "x"}


def test_the_graph_survives_its_file(tmp_path: Path) -> None:
    graph = llama(tp=2, dp=2, sp=True)
    save_graph(graph, tmp_path / "rank.graph")
    again = load_graph(tmp_path / "rank.graph")
    assert (again.ops, again.tensors, again.metadata) == (graph.ops, graph.tensors, graph.metadata)


def test_capture_graph_takes_a_function_and_a_world() -> None:
    by_verb = capture_graph(lambda: build_llama(SMALL, tp=2), world_size=2, rank=1, phase="train")
    assert collectives_of(by_verb) == collectives_of(llama(tp=2, rank=1))


def test_nothing_is_left_behind() -> None:
    before = (DeviceMesh.__init__, dict(os.environ), dict(dist.Backend.backend_capability))
    llama(dp=2)
    with pytest.raises(ForetraceError, match="too small"):
        capture_distributed(_fails, world_size=2)
    assert not dist.is_initialized()
    assert before == (DeviceMesh.__init__, dict(os.environ), dict(dist.Backend.backend_capability))


def _fails() -> Any:
    raise ValueError("too small")


def test_a_step_that_fails_is_said_with_its_rank() -> None:
    def build() -> Any:
        model = nn.Linear(8, 8)
        fully_shard(model, mesh=init_device_mesh("cuda", (2,)))
        return model, torch.randn(4, 7)

    with pytest.raises(ForetraceError, match=r"build: its forward failed on rank 1: RuntimeError: a and b"):
        capture_distributed(build, world_size=2, rank=1)


def test_a_stage_that_would_ask_its_neighbours_is_refused() -> None:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    def build() -> Any:
        model = nn.Linear(8, 8)
        stage = PipelineStage(model, dist.get_rank(), 2, torch.device("cpu"))
        schedule = ScheduleGPipe(stage, 2, loss_fn=lambda y, t: (y - t).mean())
        return model, (torch.randn(4, 8),), lambda _, x: schedule.step(x)

    with pytest.raises(ForetraceError, match="give PipelineStage input_args and output_args"):
        capture_distributed(build, world_size=2, phase="train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"world_size": 4, "rank": 4}, "--rank 4: a world of 4 has ranks 0 to 3"),
        ({"world_size": 0}, "--world-size 0: expected at least 1"),
        ({"rank": 1}, "give --world-size"),
        ({"world_size": 2, "batch": 4}, "batch=4: .* takes no sizes; with --world-size the function says its sizes"),
        ({"world_size": 2, "dims": {"rows": 4}}, "rows=4: "),
        ({"world_size": 2, "dtype": "bfloat16"}, "the function says its dtype"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ForetraceError, match=message):
        capture_graph(lambda: build_llama(SMALL, tp=2), **given)


def test_a_model_of_the_catalogue_has_no_world() -> None:
    with pytest.raises(ForetraceError, match=r"package\.module:function"):
        capture_graph("gpt2", world_size=2)


def test_a_process_with_a_group_of_its_own_is_refused() -> None:
    with fake_world(2), pytest.raises(ForetraceError, match="destroy_process_group"), fake_world(2):
        pass


def test_the_example_from_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from foretrace.cli import app

    out = tmp_path / "rank.graph"
    options = ["--world-size", "16", "--rank", "9", "--phase", "train", "-o", str(out)]
    result = CliRunner().invoke(app, ["capture", "examples.llama_tp_fsdp:build", *options])
    assert result.exit_code == 0, result.output
    graph = load_graph(out)
    assert graph.metadata["mesh"] == "dp=2,tp=8"
    assert {op.attributes["base"] for op in graph.ops if op.kind is OpKind.COLLECTIVE} == {1, 8}
    refused = CliRunner().invoke(app, ["capture", "gpt2", "--world-size", "2", "-o", str(out)])
    assert refused.exit_code != 0


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two real processes communicate in a case: a list of (name, bytes, ranks) for each of them."""

    def run(case: str) -> list[list[tuple[str, int, int]]]:
        folder = tmp_path_factory.mktemp(case)
        worker = Path(__file__).parents[1] / "gloo_worker.py"
        commands = [
            [sys.executable, str(worker), case, str(rank), str(folder / "store"), str(folder / f"{rank}.json")]
            for rank in (0, 1)
        ]
        running = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
        try:
            errors = [p.communicate(timeout=120)[1] for p in running]
        finally:
            for p in running:
                p.kill()
        assert [p.returncode for p in running] == [0, 0], "\n".join(errors)
        return [[tuple(c) for c in json.loads((folder / f"{r}.json").read_text())] for r in (0, 1)]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_two_real_processes_communicate_what_the_graph_says(case: str, gloo: Any) -> None:
    for rank, real in enumerate(gloo(case)):
        graph = capture_distributed(CASES[case], world_size=2, rank=rank, phase="train")
        said = [
            (op.name, op.attributes["bytes"], op.attributes["ranks"])
            for op in graph.ops
            if op.kind is OpKind.COLLECTIVE
        ]
        assert said == real
