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


@lru_cache
def captured(kind: str, attention: str = "sdpa") -> Graph:
    """A training step with AdamW of a two-layer model of *kind*, sizes open."""
    from foretrace import capture_graph

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"tiny-{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
        return capture_graph(str(path), phase="train", optimizer="adamw", attention=attention)
