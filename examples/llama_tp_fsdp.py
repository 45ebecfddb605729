"""A Llama as torchtitan parallelises it: tensor parallel with sequence-parallel norms, FSDP2 around each layer.

foretrace capture examples.llama_tp_fsdp:build --world-size 64 --phase train --optimizer adamw -o rank0.graph

Nothing here knows of Foretrace: on a cluster the same function runs under torchrun.
"""

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
    parallelize_module,
)

WIDTH, HIDDEN, HEADS, KV_HEADS, DEPTH, VOCABULARY = 4096, 14336, 32, 8, 4, 128256  # four layers of Llama-3.1-8B
TP = 8


class Attention(nn.Module):
    """Grouped-query attention; the heads are those of this rank. (Rotary positions are left out.)"""

    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(WIDTH, KV_HEADS * self.size, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) → the same."""
        batch, seq = x.shape[:2]
        q, k, v = (w(x).view(batch, seq, -1, self.size).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(batch, seq, -1))


class FeedForward(nn.Module):
    """A gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) → the same."""
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) → the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, seq) token ids → logits."""
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def parallelize(model: Llama, mesh: DeviceMesh) -> None:
    """Tensor parallel within a node, weights sharded over the nodes."""
    ends = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, mesh["tp"], ends)
    gather = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    layer = {
        "attention_norm": SequenceParallel(),
        "attention": gather,
        **{f"attention.w{p}": ColwiseParallel() for p in "qkv"},
        "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
        "ffn_norm": SequenceParallel(),
        "feed_forward": gather,
        **{f"feed_forward.w{n}": ColwiseParallel() for n in (1, 3)},
        "feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
    }
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.layers:
        parallelize_module(block, mesh["tp"], layer)
        fully_shard(block, mesh=mesh["dp"], mp_policy=policy)
    fully_shard(model, mesh=mesh["dp"], mp_policy=policy)


def build(batch: int = 1, seq: int = 4096) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The parallelised module and this rank's inputs: what `foretrace capture` calls, once a world exists.

    As it takes batch and seq, the graph leaves them open.
    """
    world = torch.distributed.get_world_size()
    mesh = init_device_mesh("cuda", (world // TP, TP), mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = Llama()
    parallelize(model, mesh)
    return model, (torch.zeros(batch, seq, dtype=torch.long),)
