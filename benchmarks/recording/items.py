"""What is recorded: models, phases, sizes, executions. The first items of a model matter most: time may run out."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from foretrace.ir import Graph

CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "qwen3-30b-a3b-12l": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    },
    "qwen3-moe-4l-16e": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 32000, "hidden_size": 1024,
        "intermediate_size": 3072, "moe_intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True,
    },
    "tiny": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "dispatch": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    },
}  # fmt: skip
"""Models of no catalogue: a MoE cut to fit a GPU (Qwen3-30B-A3B, 12 of its 48 layers) or a CPU, and small ones."""


@dataclass(frozen=True)
class Item:
    """One step to measure: arguments of `foretrace.measure_model`, by its names."""

    model: str
    phase: str = "forward"
    batch: int = 1
    seq: int | None = None
    context: int | None = None
    dtype: str = "float32"
    attention: str = "sdpa"
    execution: str = "eager"
    optimizer: str | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        sizes = (f"b{self.batch}", f"s{self.seq}" if self.seq else "", f"c{self.context}" if self.context else "")
        parts = (self.model, self.phase, *sizes, self.dtype, self.attention, self.optimizer or "", self.execution)
        return ".".join(part.replace(".", "-") for part in parts if part).lower()

    def sizes(self) -> dict[str, int]:
        """Symbol → value."""
        given = {"batch": self.batch, "seq": self.seq, "context": self.context}
        return {name: value for name, value in given.items() if value is not None}

    def capture(self, folder: Path) -> Graph:
        """Its graph; a model of no catalogue is written to *folder*."""
        import foretrace

        return foretrace.capture_graph(
            reference(self.model, folder),
            phase=self.phase,
            dtype=self.dtype,
            attention=self.attention,
            optimizer=self.optimizer,
            **self.sizes(),
        )

    def as_row(self) -> dict[str, Any]:
        """Plain data, empty values left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "Item":
        """What `as_row` gave, among other keys."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})


def reference(model: str, folder: Path) -> str:
    """What `capture_graph` and `measure_model` take for *model*."""
    if model not in CONFIGS:
        return model
    home = folder / model
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(CONFIGS[model]), encoding="utf-8")
    return str(home)


def _gpu() -> list[tuple[float, list[Item]]]:
    bf16 = "bfloat16"
    one, eight, qwen, moe = "Llama-3.2-1B", "Llama-3.1-8B", "Qwen3-8B", "qwen3-30b-a3b-12l"
    bert, vit = "bert-large-uncased", "vit-large-patch16-224"
    return [
        (3.0, [
            Item(one, "prefill", 1, 512, dtype=bf16),
            Item(one, "decode", 1, context=1024, dtype=bf16),
            Item(one, "prefill", 8, 2048, dtype=bf16),
            Item(one, "decode", 128, context=1024, dtype=bf16),
            Item(one, "decode", 16, context=4096, dtype=bf16),
            Item(one, "train", 4, 1024, dtype=bf16, optimizer="adamw"),
            Item(one, "prefill", 8, 2048, dtype=bf16, execution="compiled"),
            Item(one, "decode", 16, context=4096, dtype=bf16, execution="cudagraph"),
            Item(one, "forward", 4, 1024, dtype=bf16, attention="eager"),
        ]),
        (3.0, [
            Item(eight, "prefill", 1, 2048, dtype=bf16),
            Item(eight, "decode", 1, context=2048, dtype=bf16),
            Item(eight, "decode", 64, context=2048, dtype=bf16),
            Item(eight, "prefill", 1, 8192, dtype=bf16),
            Item(eight, "decode", 16, context=8192, dtype=bf16),
            Item(eight, "prefill", 8, 1024, dtype=bf16, execution="compiled"),
        ]),
        (2.0, [
            Item("gpt2", "prefill", 8, 1024, dtype=bf16),
            Item("gpt2", "prefill", 1, 128),
            Item("gpt2", "decode", 8, context=512, dtype=bf16),
            Item("gpt2", "train", 8, 1024, dtype=bf16, optimizer="adamw"),
            Item("gpt2", "train", 4, 1024),
        ]),
        (2.0, [Item(qwen, "prefill", 1, 4096, dtype=bf16), Item(qwen, "decode", 32, context=4096, dtype=bf16)]),
        (1.0, [Item(moe, "prefill", 1, 2048, dtype=bf16), Item(moe, "decode", 32, context=2048, dtype=bf16)]),
        (1.0, [
            Item(bert, "forward", 16, 512),
            Item(bert, "forward", 16, 512, dtype=bf16),
            Item(bert, "train", 8, 512, dtype=bf16),
        ]),
        (1.0, [Item(vit, "forward", 32, dtype=bf16), Item(vit, "train", 16, dtype=bf16)]),
    ]  # fmt: skip


def _cpu() -> list[tuple[float, list[Item]]]:
    one = "Llama-3.2-1B"
    return [
        (3.0, [
            Item("gpt2", "prefill", 1, 64),
            Item("gpt2", "prefill", 1, 256),
            Item("gpt2", "decode", 1, context=128),
            Item("gpt2", "decode", 4, context=256),
            Item("gpt2", "decode", 16, context=128),
            Item("gpt2", "train", 1, 64),
            Item("gpt2", "prefill", 1, 64, execution="compiled"),
            Item("gpt2", "forward", 1, 128, attention="eager"),
        ]),
        (4.0, [
            Item(one, "prefill", 1, 32),
            Item(one, "decode", 1, context=128),
            Item(one, "decode", 4, context=256),
            Item(one, "prefill", 1, 128),
            Item(one, "decode", 8, context=64),
        ]),
        (1.0, [Item("bert-large-uncased", "forward", 1, 128)]),
        (1.0, [Item("vit-large-patch16-224", "forward", 1)]),
        (1.0, [Item("qwen3-moe-4l-16e", "prefill", 1, 64), Item("qwen3-moe-4l-16e", "decode", 4, context=64)]),
    ]  # fmt: skip


def groups(device: str, quick: bool) -> list[tuple[float, list[Item]]]:
    """(share of the time, items of one model), what matters most first."""
    if quick:
        eager = [Item("tiny", phase, 2, 16) for phase in ("prefill", "train")]
        return [(1.0, [*eager, Item("tiny", "decode", 2, context=32)])]
    return _cpu() if device == "cpu" else _gpu()
