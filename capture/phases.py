"""What one step of a model is: the inputs of each phase at one point, and the call that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foretrace.ir import ForetraceError, Symbol, UnknownNameError

from .recorder import on_meta

PHASES = ("forward", "prefill", "decode")

DEFAULTS = {"batch": 1, "seq": 128, "context": 512}
DESCRIPTIONS = {
    "batch": "sequences in the step",
    "seq": "new tokens of each sequence",
    "context": "tokens of each sequence already in the KV cache",
}


@dataclass(frozen=True)
class Step:
    """One step, ready to run: named inputs, and the call that gives the named results."""

    inputs: Mapping[str, torch.Tensor]
    run: Callable[[], Mapping[str, torch.Tensor]]


def check_phase(phase: str) -> None:
    """Raise `UnknownNameError` for a phase that cannot be captured."""
    if phase == "train":
        raise ForetraceError(f"phase 'train' cannot be captured yet; the phases are {', '.join(PHASES)}")
    if phase not in PHASES:
        raise UnknownNameError("phase", phase, PHASES)


def symbols_of(phase: str, given: Mapping[str, int]) -> dict[str, Symbol]:
    """The symbols of a phase with *given* sizes as defaults. Decode adds one token unless a seq is given."""
    check_phase(phase)
    names = ("batch", "seq", "context") if phase == "decode" else ("batch", "seq")
    unknown = [n for n in given if n not in names]
    if unknown:
        raise UnknownNameError("symbol", unknown[0], names, f"phase {phase} has {', '.join(names)}")
    for name, value in given.items():
        if value < 1:
            raise ForetraceError(f"--{name} {value}: expected a size of at least 1")
    defaults = DEFAULTS | ({"seq": 1} if phase == "decode" else {}) | dict(given)
    return {n: Symbol(n, defaults[n], 1, None, DESCRIPTIONS[n]) for n in names}


def make_step(model: torch.nn.Module, config: Any, phase: str, point: Mapping[str, int], device: str) -> Step:
    """The step of *phase* at *point* (batch, seq, context). On meta token ids are zeros, elsewhere random."""
    batch, seq = point["batch"], point["seq"]
    vocabulary = config.get_text_config().vocab_size

    def tokens(length: int) -> torch.Tensor:
        if device == "meta":
            return torch.zeros(batch, length, dtype=torch.long)
        return torch.randint(0, vocabulary, (batch, length), device=device)

    ids = tokens(seq)
    if phase == "forward":
        return Step({"input_ids": ids}, lambda: {"logits": model(input_ids=ids, use_cache=False).logits})
    cache = _filled_cache(model, config, tokens, point, device) if phase == "decode" else None
    inputs = {"input_ids": ids, **_cache_tensors(cache)}

    def run() -> Mapping[str, torch.Tensor]:
        # a step appends to its cache: every run starts from the same one
        past = _copy_cache(cache)
        keep = {"logits_to_keep": 1} if phase == "prefill" else {}
        out = model(input_ids=ids, past_key_values=past, use_cache=True, **keep)
        return {"logits": out.logits, **_cache_tensors(out.past_key_values)}

    return Step(inputs, run)


def _copy_cache(cache: Any) -> Any:
    """A cache whose layers can grow without changing *cache*; the tensors themselves are shared."""
    import copy

    if cache is None:
        return None
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def _cache_tensors(cache: Any) -> dict[str, torch.Tensor]:
    """Every tensor a cache holds, by name: ``kv_cache.3.keys``; recurrent states too."""
    found: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(getattr(cache, "layers", ())):
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                found[f"kv_cache.{i}.{name}"] = value
    return found


def _filled_cache(
    model: torch.nn.Module, config: Any, tokens: Callable[[int], torch.Tensor], point: Mapping[str, int], device: str
) -> Any:
    """A cache that holds `context` tokens: made directly where every layer is a plain one, else by a prefill."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=config)
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        shape = (point["batch"], heads, point["context"], size)
        dtype = next(model.parameters()).dtype
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.keys, layer.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            if device != "meta":
                layer.keys.normal_()
                layer.values.normal_()
            layer.dtype, layer.device, layer.is_initialized = dtype, torch.device(device), True
        return cache
    ids = tokens(point["context"])
    if device != "meta":
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    with on_meta(model):
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
