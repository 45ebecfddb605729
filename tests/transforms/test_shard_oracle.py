"""Our sharding against torch's own: DTensor on a fake process group of 64 and 512 ranks, product by product.

What torch.distributed records for a parallelised module must be what we make of the same module captured whole: the
same local matrix products, and the same collectives with the same bytes among as many ranks.
"""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pytest

pytest.importorskip("torch.distributed.fsdp")

from foretrace.ir import Graph, verify
from foretrace.transforms.shard import TensorParallel
from tests.distributed_models import SMALL, collectives_of, llama, matmuls_of, moe

pytestmark = pytest.mark.slow

ATTENTION = {
    "*.self_attn.q_proj": "colwise",
    "*.self_attn.k_proj": "colwise",
    "*.self_attn.v_proj": "colwise",
    "*.self_attn.o_proj": "rowwise",
}
"""What `tests.distributed_models.moe` divides."""


@lru_cache
def whole(kind: str) -> Graph:
    return llama() if kind == "llama" else moe()


def tensor_parallel(graph: Graph, phase: str) -> Counter[tuple[str, int, int]]:
    """The collectives among tensor parallel ranks (FSDP's are their own: they gather and reduce parameters)."""
    return Counter({k: n for k, n in collectives_of(graph, phase).items() if "_c10d_functional" in k[0]})


@pytest.mark.parametrize("world", [64, 512])
@pytest.mark.parametrize("sequence", [False, True])
def test_llama_is_divided_as_dtensor_divides_it(world: int, sequence: bool) -> None:
    ours = verify(TensorParallel(8, sequence, regather=False).run(whole("llama")))
    torchs = llama(tp=8, dp=world // 8, sp=sequence)
    norms = Counter({k: n for k, n in tensor_parallel(torchs, "backward").items() if k[1] == SMALL.hidden_size * 4})
    for phase in ("forward", "backward"):
        assert matmuls_of(ours, phase) == matmuls_of(torchs, phase)
        assert tensor_parallel(ours, phase) == tensor_parallel(torchs, phase) - norms
    apart = sum(bytes_ * n for (_, bytes_, _), n in norms.items())  # one norm's gradient each; we sum them in one
    assert apart == sum(bytes_ * n for (_, bytes_, _), n in tensor_parallel(ours, "optimizer").items())


@pytest.mark.parametrize("world", [64, 512])
def test_attention_of_a_mixture_of_experts_too(world: int) -> None:
    ours = verify(TensorParallel(8, styles=ATTENTION).run(whole("moe")))
    torchs = moe(tp=8, dp=world // 8)
    for phase in ("forward", "backward"):
        assert matmuls_of(ours, phase) == matmuls_of(torchs, phase)
        assert tensor_parallel(ours, phase) == tensor_parallel(torchs, phase)


def test_a_wider_model_on_fewer_ranks() -> None:
    sizes = replace(SMALL, hidden_size=512, num_attention_heads=32, intermediate_size=1536, vocab_size=4096)
    ours = TensorParallel(2).run(llama(sizes))
    torchs = llama(sizes, tp=2)
    for phase in ("forward", "backward"):
        assert matmuls_of(ours, phase) == matmuls_of(torchs, phase)
        assert tensor_parallel(ours, phase) == tensor_parallel(torchs, phase)
