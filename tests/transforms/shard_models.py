"""Small models of many families, captured once a run: what sharding is held against."""

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foretrace.ir import Graph

_DECODER = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 160, "max_position_embeddings": 512,
}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 8, "vocab_size": 160, "n_positions": 512}
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], **_DECODER},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], **_GPT2},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8, **_DECODER},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "pad_token_id": 0, **_DECODER},
    "phi": {"architectures": ["PhiForCausalLM"], **_DECODER},
    "bloom": {"architectures": ["BloomForCausalLM"], "hidden_size": 64, "n_layer": 2, "n_head": 8, "vocab_size": 160},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], **_DECODER},
    "mixtral": {"architectures": ["MixtralForCausalLM"], **_DECODER, **_EXPERTS},
}

_ONE = {**_DECODER, "num_hidden_layers": 1}
_ROUTED = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MORE: dict[str, dict[str, Any]] = {
    "gpt_oss": {"architectures": ["GptOssForCausalLM"], **_ONE, **_EXPERTS, "head_dim": 8, "sliding_window": 16},
    "bert": {
        "architectures": ["BertForMaskedLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "vocab_size": 160,
    },
    "llama4_text": {
        "architectures": ["Llama4ForCausalLM"], **_ONE, "head_dim": 8, "intermediate_size_mlp": 128,
        "num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"], **_ONE, **_ROUTED, "shared_expert_intermediate_size": 64,
    },
    "gptj": {"architectures": ["GPTJForCausalLM"], **_GPT2, "n_layer": 1, "rotary_dim": 4},
    "falcon": {
        "architectures": ["FalconForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
        "num_kv_heads": 4, "new_decoder_architecture": True, "vocab_size": 160,
    },
}  # fmt: skip
"""One layer each, of kinds that are made another way: experts by their own plan, stacked rotations, picked heads."""


@lru_cache
def captured(kind: str, attention: str = "sdpa", phase: str = "train", optimizer: str = "adamw") -> Graph:
    """A step of a small model of *kind*, sizes open; a training step's with its optimizer."""
    from foretrace import capture_graph

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"tiny-{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": kind, **(CONFIGS | MORE)[kind]}))
        steps = {"optimizer": optimizer} if phase == "train" else {}
        return capture_graph(str(path), phase=phase, attention=attention, **steps)
