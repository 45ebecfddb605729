"""What the columns of a training row say: the model, the plan, and the framework whose software ran it.

A row is a global batch on `n_gpus` accelerators: dp replicas × grad_acc micro-batches × mbs samples. `framework` says
whose software ran: its kernels and its host (an execution), the formats of its state, how it cuts a pipeline.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from foretrace.ir import ForetraceError
from foretrace.transforms.plan import Plan

from .row_values import Captured, Row, Shape, count, dtype_of, number, size

MEGATRON_VOCABULARY: Final = 51200
"""Entries of the vocabulary of Megatron's GPT: GPT-2's 50257 padded, as its papers state."""
GPT2_VOCABULARY: Final = 50257
"""Without tensor parallel nothing pads it: ``calib`` rows show logits at a third of the pace of padded ones."""
NO_BUCKETS: Final = 10**15
"""Elements of a bucket that holds all gradients: they are reduced when the backward is over."""


@dataclass(frozen=True)
class Framework:
    """How one training framework runs a plan."""

    execution: str
    attention: str
    """How the captured model computes attention."""
    gradient: str | None
    """Format that gradients are summed over micro-batches and replicas in; None: that of the parameters."""
    bucket: int | None
    """Elements of gradients reduced at a time, beside the backward; `NO_BUCKETS`: after it."""
    sequence_parallel: bool
    """Whether tensor parallel always divides the sequence too."""
    split: Callable[[dict[str, Any], int], tuple[int, ...] | None]
    """(configuration, stages) → layers of each stage."""


def even_split(model: dict[str, Any], stages: int) -> tuple[int, ...] | None:
    """As many layers on each stage (Megatron-LM)."""
    layers = int(model.get("n_layer") or model["num_hidden_layers"])
    return (layers // stages,) * stages if layers % stages == 0 else None


def nanotron_split(model: dict[str, Any], stages: int) -> tuple[int, ...] | None:
    """nanotron's cut: blocks in order, the next stage from where a stage's share of all parameters is reached.

    Blocks count their matrices, the embedding nothing and the head its own (``get_block_compute_costs``). The last
    stage may be left without a layer; another one then takes one from the stage before.
    """
    width, ffn = model["hidden_size"], model["intermediate_size"]
    kv = model["num_key_value_heads"] / model["num_attention_heads"]
    layer = (2 + 2 * kv) * width * width + 3 * width * ffn
    layers = model["num_hidden_layers"]
    whole = layers * layer + model["vocab_size"] * width
    found, stage, reached = [0] * stages, 0, 0.0
    for _ in range(layers):
        found[stage] += 1
        reached += layer
        if reached >= whole * (stage + 1) / stages and stage < stages - 1:
            stage += 1
    for k in reversed(range(1, stages - 1)):
        if found[k] == 0:
            found[k], found[k - 1] = 1, found[k - 1] - 1
    return tuple(found) if min(found[:-1]) > 0 else None


MEGATRON: Final = Framework("megatron", "eager", None, NO_BUCKETS, False, even_split)
DEEPSPEED: Final = Framework("megatron-deepspeed", "eager", None, NO_BUCKETS, False, even_split)
NANOTRON: Final = Framework("nanotron", "sdpa", "float32", None, True, nanotron_split)
BRIDGE: Final = Framework("compiled", "sdpa", "float32", None, True, even_split)
"""Megatron-Bridge and NeMo with Transformer Engine: fused kernels, little host."""
PLAIN: Final = Framework("eager", "sdpa", None, None, False, even_split)
"""PyTorch as it stands, for frameworks that we do not know."""
FRAMEWORKS: Final = (
    ("megatron-deepspeed", DEEPSPEED),
    ("megatron-lm", MEGATRON),
    ("nanotron", NANOTRON),
    ("megatron-bridge", BRIDGE),
    ("automodel", BRIDGE),
)
"""What the column `framework` holds, in lower case → the framework."""


def _gpt(layers: int, width: int, heads: int) -> dict[str, Any]:
    """A GPT of Megatron-LM (Korthikanti et al. 2022, arXiv:2205.05198, table 3)."""
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": 2048, "n_inner": 4 * width}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": MEGATRON_VOCABULARY, **sizes}


MODELS: Final[Mapping[str, str | dict[str, Any]]] = {
    "megatron-22b": _gpt(48, 6144, 64),
    "gpt3-175b": _gpt(96, 12288, 96),
    "llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "gpt_oss_120b": "openai/gpt-oss-120b",
}
"""Model by its name in tables, in lower case with ``_`` for spaces and without a count of nodes."""


@dataclass(frozen=True)
class Run:
    """A training step to replay."""

    what: Captured
    at: Shape
    plan: Plan
    micro_batches: int
    framework: Framework
    split: tuple[int, ...] | None = None


def read_run(row: Row) -> Run:
    """What a row's columns say. Raises `ForetraceError` for what is not replayed, and says why."""
    dtype = _priced_dtype(row)
    framework = _framework(row)
    config = _configuration(row, framework)
    tp, pp, cp, ep = (max(count(row, name), 1) for name in ("tp", "pp", "cp", "ep"))
    micro = size(row, "mbs")
    ranks = count(row, "n_gpus", 0.0)
    dp = count(row, "dp", max(ranks, 1) // (tp * pp * cp))
    divided = count(row, "fsdp", 0.0) > 1
    note = str(row.get("note", ""))
    recompute = next((r for r in ("full", "selective") if f"recompute={r}" in note), "none")
    plan = Plan(
        tp=tp,
        sp=tp > 1 and (framework.sequence_parallel or "sequence parallel" in note),
        pp=pp,
        cp=cp,
        ep=ep,
        dp=max(dp, 1),
        zero=3 if divided else count(row, "zero", 0.0) if dp > 1 else 0,
        interleave=max(count(row, "vp"), 1) if pp > 1 else 1,
        microbatch=micro,
        recompute=recompute,
    )
    plan.check(ranks or plan.ranks)
    micro_batches = count(row, "grad_acc", number(row, "n_microbatch", 0.0))
    if micro_batches < 1:
        micro_batches = plan.micro_batches(size(row, "gbs"))
    split = None if pp == 1 or isinstance(config, str) else framework.split(config, plan.stages)
    model = config if isinstance(config, str) else json.dumps(config)
    what = Captured(model, "train", dtype, framework.attention)
    return Run(what, Shape(micro, size(row, "seq")), plan, micro_batches, framework, split)


def _priced_dtype(row: Row) -> str:
    """The format of a row's products. Raises `ForetraceError` for training that is not replayed yet."""
    task = str(row.get("task", "pretrain")).lower()
    if "lora" in task:
        raise ForetraceError("LoRA: the backward of a frozen model with adapters is not captured yet")
    if str(row.get("precision", "")).upper().startswith("FP8"):
        raise ForetraceError("FP8 training: its quantised products are not captured yet")
    return dtype_of(row)


def _framework(row: Row) -> Framework:
    said = str(row.get("framework", "")).lower()
    return next((framework for name, framework in FRAMEWORKS if name in said), PLAIN)


def _configuration(row: Row, framework: Framework) -> str | dict[str, Any]:
    """The model that a row names, or that its sizes describe: a GPT of Megatron's, else a Llama."""
    if row.get("model"):
        name = str(row["model"]).strip().lower().replace(" ", "_")
        return MODELS.get(re.sub(r"_\d+-node$", "", name), str(row["model"]))
    if "hidden" not in row:
        raise ForetraceError("names no model and no sizes of one")
    width, layers, heads, seq = (size(row, name) for name in ("hidden", "layers", "heads", "seq"))
    vocab = int(number(row, "vocab", MEGATRON_VOCABULARY))
    if framework in (MEGATRON, DEEPSPEED):
        if "vocab" not in row or number(row, "vocab", 0.0) == 0:
            vocab = MEGATRON_VOCABULARY if count(row, "tp") > 1 else GPT2_VOCABULARY
        ffn = int(number(row, "ffn", 4.0 * width))
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": max(seq, 1024), "n_inner": ffn}
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab, **sizes}
    tied = str(row.get("tied", "")) != "False"
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab}
    more = {
        "num_key_value_heads": int(number(row, "kv_heads", heads)),
        "intermediate_size": _ffn(row, width, layers, vocab),
        "max_position_embeddings": seq,
        "tie_word_embeddings": tied,
    }
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **more}


def _ffn(row: Row, width: int, layers: int, vocab: int) -> int:
    """The inner width of a gated MLP: as stated, or what the stated parameters leave for it, to a multiple of 256."""
    if (stated := number(row, "ffn", 0.0)) > 0:
        return int(stated)
    whole = number(row, "params_b", 0.0) * 1e9
    if not whole:
        return 4 * width
    left = (whole - vocab * width) / layers - 4 * width * width
    return max(round(left / (3 * width) / 256), 1) * 256
