"""Parallelised models as users write them, and what torch.distributed does with them: the oracle of our own sharding.

`llama` and `moe` give the captured Graph of one rank; `matmuls_of` and `collectives_of` the multisets to compare.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from foretrace.capture.distributed import capture_distributed
from foretrace.ir import Graph, OpKind

Built = tuple[Any, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small Llama; names are those of its Hugging Face configuration."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    num_hidden_layers: int = 2
    vocab_size: int = 1024
    batch: int = 2
    seq: int = 64

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


SMALL = Sizes()


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.head_dim = s.head_dim
        kv = s.num_key_value_heads * s.head_dim
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(_rotate(q), _rotate(k), v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(*y.shape[:1], y.shape[2], -1))


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions (RoFormer), computed on the spot."""
    length, width = x.shape[-2:]
    angles = torch.outer(torch.arange(length, dtype=x.dtype), torch.arange(0, width, 2, dtype=x.dtype))
    cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat((-x[..., width // 2 :], x[..., : width // 2]), -1) * sin


class MLP(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, s: Sizes, mlp: Callable[[Sizes], nn.Module] = MLP) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden_size)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden_size)
        self.mlp = mlp(s)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, s: Sizes, mlp: Callable[[Sizes], nn.Module] = MLP) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Block(s, mlp) for _ in range(s.num_hidden_layers))
        self.norm = nn.RMSNorm(s.hidden_size)
        self.lm_head = nn.Linear(s.hidden_size, s.vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def apply_tp(model: nn.Module, mesh: DeviceMesh, *, sp: bool, vocab_loss: bool = True) -> None:
    """torchtitan's plan: colwise q, k, v, gate, up; rowwise o, down; vocabulary over ranks; *sp*: norms by sequence."""
    layout = Shard(1) if sp else Replicate()
    ends: dict[str, Any] = {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=layout),
        "lm_head": ColwiseParallel(
            input_layouts=layout,
            output_layouts=Shard(-1) if vocab_loss else Replicate(),
            use_local_output=not vocab_loss,
        ),
    }
    parallelize_module(model, mesh, ends | ({"norm": SequenceParallel()} if sp else {}))
    for layer in model.layers:  # type: ignore[union-attr]
        parallelize_module(layer, mesh, _attention_plan(layout, sp) | _mlp_plan(layout, sp))


def _attention_plan(layout: Any, sp: bool) -> dict[str, Any]:
    plan = {f"self_attn.{p}_proj": ColwiseParallel() for p in "qkv"}
    plan["self_attn.o_proj"] = RowwiseParallel(output_layouts=layout)
    plan["self_attn"] = PrepareModuleInput(input_layouts=(layout,), desired_input_layouts=(Replicate(),))
    return plan | ({"input_layernorm": SequenceParallel()} if sp else {})


def _mlp_plan(layout: Any, sp: bool) -> dict[str, Any]:
    plan: dict[str, Any] = {f"mlp.{p}_proj": ColwiseParallel() for p in ("gate", "up")}
    plan["mlp.down_proj"] = RowwiseParallel(output_layouts=layout)
    plan["mlp"] = PrepareModuleInput(input_layouts=(layout,), desired_input_layouts=(Replicate(),))
    return plan | ({"post_attention_layernorm": SequenceParallel()} if sp else {})


def apply_fsdp(model: nn.Module, mesh: DeviceMesh, *, bf16: bool = False) -> None:
    """FSDP2 as torchtitan does it: each layer a group, the rest of the model another."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for layer in model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def make_mesh(device: str, **sizes: int) -> DeviceMesh:
    """A mesh of the dimensions that are more than one rank wide."""
    kept = {n: s for n, s in sizes.items() if s > 1} or {"dp": 1}
    return init_device_mesh(device, tuple(kept.values()), mesh_dim_names=tuple(kept))


def train(model: nn.Module, tokens: torch.Tensor, vocab_loss: bool) -> None:
    """Forward, next-token loss (over a vocabulary split over ranks where *vocab_loss*), backward."""
    with loss_parallel() if vocab_loss else nullcontext():
        logits = model(tokens)
        F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()).backward()


def build_llama(
    s: Sizes,
    *,
    tp: int = 1,
    dp: int = 1,
    replicas: int = 1,
    sp: bool = False,
    vocab_loss: bool = True,
    bf16: bool = False,
    device: str = "cuda",
) -> Built:
    """A Llama over a mesh (replicas, dp, tp), as ``package.module:function`` gives it."""
    mesh = make_mesh(device, replicas=replicas, dp=dp, tp=tp)
    model = Llama(s)
    if tp > 1:
        apply_tp(model, mesh["tp"], sp=sp, vocab_loss=vocab_loss)
    if dp * replicas > 1:
        over = tuple(n for n in ("replicas", "dp") if n in (mesh.mesh_dim_names or ()))
        apply_fsdp(model, mesh[over], bf16=bf16)
    tokens = torch.zeros(s.batch, s.seq, dtype=torch.long)
    return model, (tokens,), lambda m, t: train(m, t, vocab_loss and tp > 1)


def build_replicas(s: Sizes, *, dp: int, device: str = "cuda") -> Built:
    """A Llama on every rank of its own, gradients summed by DistributedDataParallel."""
    model = DistributedDataParallel(Llama(s), bucket_cap_mb=1)
    tokens = torch.zeros(s.batch, s.seq, dtype=torch.long)
    return model, (tokens,), lambda m, t: train(m, t, False)


def build_moe(s: Sizes, *, tp: int = 1, dp: int = 1, device: str = "cuda") -> Built:
    """A Qwen3-MoE of Hugging Face over a mesh (dp, tp): FSDP2, and its attention tensor parallel."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    mesh = make_mesh(device, dp=dp, tp=tp)
    config = Qwen3MoeConfig(
        hidden_size=s.hidden_size,
        num_attention_heads=s.num_attention_heads,
        num_key_value_heads=s.num_key_value_heads,
        head_dim=s.head_dim,
        num_hidden_layers=s.num_hidden_layers,
        vocab_size=s.vocab_size,
        moe_intermediate_size=s.intermediate_size // 4,
        num_experts=16,
        num_experts_per_tok=4,
    )
    model = Qwen3MoeForCausalLM(config)
    for layer in model.model.layers if tp > 1 else ():
        same = {"hidden_states": Replicate()}
        plan: dict[str, Any] = {f"{p}_proj": ColwiseParallel() for p in "qkv"} | {"o_proj": RowwiseParallel()}
        parallelize_module(layer.self_attn, mesh["tp"], plan)
        prepared = PrepareModuleInput(input_kwarg_layouts=same, desired_input_kwarg_layouts=same)
        parallelize_module(layer, mesh["tp"], {"self_attn": prepared})
    if dp > 1:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    tokens = torch.zeros(s.batch, s.seq, dtype=torch.long)
    return model, (tokens,), lambda m, t: m(input_ids=t, labels=t, use_cache=False).loss.backward()


def moe(s: Sizes = SMALL, *, tp: int = 1, dp: int = 1, rank: int = 0, optimizer: str | None = None) -> Graph:
    """The Graph of *rank* of a training step of a mixture of experts over dp × tp ranks."""
    return capture_distributed(
        lambda: build_moe(s, tp=tp, dp=dp), world_size=tp * dp, rank=rank, phase="train", optimizer=optimizer
    )


def build_context(s: Sizes, *, cp: int, dp: int = 1, device: str = "cuda") -> Built:
    """A Llama over a mesh (dp, cp): every sequence over cp ranks, keys and values handed round, weights over all."""
    from torch.distributed.tensor.experimental import context_parallel

    mesh = make_mesh(device, dp=dp, cp=cp)
    model = Llama(s)
    over = mesh["dp", "cp"]._flatten("dp_cp") if dp > 1 else mesh
    apply_fsdp(model, over)
    tokens = torch.zeros(s.batch, s.seq, dtype=torch.long)

    def step(model: nn.Module, tokens: torch.Tensor) -> None:
        with context_parallel(mesh["cp"], buffers=[tokens], buffer_seq_dims=[1]):
            train(model, tokens, False)

    return model, (tokens,), step


class Stage(nn.Module):
    """Every pp-th part of the layers in one piece, with the embedding on the first rank, the head on the last."""

    def __init__(self, s: Sizes, index: int, count: int) -> None:
        super().__init__()
        each = s.num_hidden_layers // count
        first, last = index == 0, index == count - 1
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size) if first else nn.Identity()
        self.layers = nn.ModuleList(Block(s) for _ in range(each))
        self.norm = nn.RMSNorm(s.hidden_size) if last else nn.Identity()
        self.lm_head = nn.Linear(s.hidden_size, s.vocab_size, bias=False) if last else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def build_pipeline(
    s: Sizes, *, pp: int, dp: int = 1, microbatches: int = 4, schedule: str = "1F1B", device: str = "cuda"
) -> Built:
    """A stage of a pipeline of *pp* ranks over a mesh (pp, dp), FSDP2 within; *s*.batch is the whole batch."""
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import get_schedule_class

    mesh = make_mesh(device, pp=pp, dp=dp)
    index = mesh.get_local_rank("pp")
    model = Stage(s, index, pp)
    if dp > 1:
        apply_fsdp(model, mesh["dp"])
    batch = s.batch // microbatches
    hidden = torch.empty(batch, s.seq, s.hidden_size, requires_grad=True)
    tokens = torch.zeros(s.batch, s.seq, dtype=torch.long)
    stage = PipelineStage(
        model,
        index,
        pp,
        torch.device("cpu"),
        input_args=tokens[:batch] if index == 0 else hidden,
        output_args=torch.empty(batch, s.seq, s.vocab_size, requires_grad=True) if index == pp - 1 else hidden,
        group=mesh.get_group("pp"),
    )
    run = get_schedule_class(schedule)(stage, microbatches, loss_fn=_loss)  # type: ignore[call-arg]

    def step(_: nn.Module, tokens: torch.Tensor) -> None:
        given = (tokens,) if index == 0 else ()
        run.step(*given, **({"target": tokens} if index == pp - 1 else {}))

    return model, (tokens,), step


def _loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def pipeline(s: Sizes = SMALL, *, pp: int, dp: int = 1, rank: int = 0, **options: Any) -> Graph:
    """The Graph of *rank* of a pipelined Llama over pp × dp ranks; *options* go to `build_pipeline`."""
    return capture_distributed(
        lambda: build_pipeline(s, pp=pp, dp=dp, **options), world_size=pp * dp, rank=rank, phase="train"
    )


def open_llama(s: Sizes = SMALL, *, batch: int | None = None, **options: Any) -> Graph:
    """As `llama`, batch and seq left open; *options* are those of both."""
    own = {n: options.pop(n) for n in ("rank", "phase", "optimizer") if n in options}
    ranks = prod(options.get(n, 1) for n in ("tp", "dp", "replicas"))

    def build(batch: int = s.batch, seq: int = s.seq) -> Built:
        return build_llama(replace(s, batch=batch, seq=seq), **options)

    sizes = {} if batch is None else {"batch": batch}
    return capture_distributed(build, world_size=ranks, sizes=sizes, **({"phase": "train"} | own))


def llama(
    s: Sizes = SMALL,
    *,
    tp: int = 1,
    dp: int = 1,
    replicas: int = 1,
    rank: int = 0,
    phase: str = "train",
    optimizer: str | None = None,
    **options: Any,
) -> Graph:
    """The Graph of *rank* of a Llama over replicas × dp × tp ranks; *options* go to `build_llama`."""
    return capture_distributed(
        lambda: build_llama(s, tp=tp, dp=dp, replicas=replicas, **options),
        world_size=tp * dp * replicas,
        rank=rank,
        phase=phase,
        optimizer=optimizer,
    )


def matmuls_of(graph: Graph, phase: str | None = None) -> Counter[tuple[int, int, int]]:
    """How often each (m, n, k) is multiplied, batches of products counted one by one; in *phase* or all of them."""
    found: Counter[tuple[int, int, int]] = Counter()
    for op in graph.ops:
        if op.kind is OpKind.MATMUL and phase in (None, op.phase):
            a: Mapping[str, Any] = op.attributes
            found[a["m"], a["n"], a["k"]] += a["b"]
    return found


def collectives_of(graph: Graph, phase: str | None = None) -> Counter[tuple[str, int, int]]:
    """How often each (name, bytes, ranks) is communicated; in *phase* or all of them."""
    return Counter(
        (op.name, op.attributes["bytes"], op.attributes["ranks"])
        for op in graph.ops
        if op.kind is OpKind.COLLECTIVE and phase in (None, op.phase)
    )


TINY = Sizes(batch=4)
CASES: dict[str, Callable[..., Built]] = {
    "tp": partial(build_llama, TINY, tp=2),
    "tp-sp": partial(build_llama, TINY, tp=2, sp=True),
    "tp-gathered": partial(build_llama, TINY, tp=2, vocab_loss=False),
    "fsdp": partial(build_llama, TINY, dp=2),
    "fsdp-bf16": partial(build_llama, TINY, dp=2, bf16=True),
    "ddp": partial(build_replicas, TINY, dp=2),
    "moe-fsdp": partial(build_moe, TINY, dp=2),
    "moe-tp": partial(build_moe, TINY, tp=2),
    "pp-1f1b": partial(build_pipeline, TINY, pp=2),
    "pp-gpipe": partial(build_pipeline, TINY, pp=2, schedule="GPipe"),
}
"""Programs of two ranks that really run, over gloo (`gloo_worker`)."""
