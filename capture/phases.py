"""What one step of a model is: the inputs of each phase at one point, and the call that runs it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from foretrace.ir import ForetraceError, Symbol, UnknownNameError

from .families import DEFAULTS, DESCRIPTIONS, Family, pinned_size, recipe_of
from .inputs import Inputs, Sampler, forward_arguments
from .recorder import on_meta

PHASES = ("forward", "prefill", "decode", "train")
TRAIN_BATCH = 4
CACHES = ("past_key_values", "cache_params", "state")
"""What models call the memory that they take and give back: transformers' caches, SSM states, RWKV's list."""


@dataclass(frozen=True)
class Step:
    """One step: named inputs, the call that gives the named results, and what a reader must know.

    What is no part of the step (a fresh copy of the cache) *ready* does beforehand, and `run` where nobody called it.
    """

    inputs: Mapping[str, torch.Tensor]
    run: Callable[[], Mapping[str, torch.Tensor]]
    notes: tuple[str, ...] = ()
    ready: Callable[[], None] = lambda: None


def check_phase(phase: str, family: Family | None = None) -> None:
    """Raise where *phase* is unknown, or means nothing for models of *family*."""
    if phase not in PHASES:
        raise UnknownNameError("phase", phase, PHASES)
    if family is not None and phase not in family.phases:
        raise ForetraceError(
            f"phase {phase!r}: a model of family {family.name} keeps no cache; its phases are "
            f"{', '.join(family.phases)}"
        )


def symbols_of(
    phase: str,
    given: Mapping[str, int],
    family: Family,
    config: Any = None,
    limits: Mapping[str, int] | None = None,
) -> dict[str, Symbol]:
    """The symbols of a phase with *given* sizes as defaults; *limits* are the lengths that position tables allow.

    Decode adds one token unless told otherwise. Raises `UnknownNameError` for a size that the phase does not have,
    `ForetraceError` for one that is not positive or beyond a limit.
    """
    check_phase(phase, family)
    names = family.names(phase)
    unknown = [n for n in given if n not in names]
    if unknown:
        raise UnknownNameError("symbol", unknown[0], names, f"phase {phase} has {', '.join(names)}")
    for name, value in given.items():
        if value < 1:
            raise ForetraceError(f"--{name} {value}: expected a size of at least 1")
    defaults = DEFAULTS | {n: pinned_size(config, n) for n in names if n in family.pinned}
    most: dict[str, int | None] = {n: (limits or {}).get(n) for n in names}
    if phase == "train":  # for one sequence autograd leaves out sums over the batch
        defaults["batch"] = TRAIN_BATCH
    if phase == "decode":
        defaults[family.cached] = 1
        if (limit := most[family.cached]) is not None:  # what is cached and what is new share the positions
            most[family.cached] = given.get(family.cached, 1)
            most["context"] = limit - given.get(family.cached, 1)
    symbols = {}
    for n in names:
        limit = most[n]
        size = given.get(n, defaults[n] if limit is None else min(defaults[n], limit))
        if limit is not None and size > limit:
            raise ForetraceError(f"--{n} {size}: the model has learned positions for {n} of at most {limit}")
        symbols[n] = Symbol(n, size, 1, limit, DESCRIPTIONS[n])
    return symbols


def make_step(
    model: torch.nn.Module,
    config: Any,
    phase: str,
    point: Mapping[str, int],
    device: str,
    family: Family | None = None,
) -> Step:
    """The step of *phase* at *point*. On meta token ids are zeros, elsewhere random."""
    family = family or recipe_of(type(model).__name__, config).family
    make = Sampler(model, config, device)
    if phase == "decode":
        return _decode_step(make, family, point)
    inputs = family.make(make, point)
    if phase == "prefill":
        keep = {"logits_to_keep": 1} if make.takes("logits_to_keep") else {}
        return _step(make, inputs, keep | _use_cache(make, True))
    if phase == "train" and family.cached and make.takes("labels"):
        inputs |= {"labels": inputs["decoder_input_ids" if family.cached == "target" else "input_ids"]}
        if getattr(model, "loss_type", "") is None:  # transformers falls back on this one, with a warning
            model.loss_type = "ForCausalLM"  # type: ignore[assignment]
    return _step(make, inputs, _use_cache(make, False))


def _step(make: Sampler, inputs: Inputs, arguments: Mapping[str, Any], cache: tuple[str, Any] | None = None) -> Step:
    copies: list[dict[str, Any]] = []

    def ready() -> None:
        # a step appends to its cache: every run starts from the same one
        copies[:] = [{} if cache is None else {cache[0]: _copy_cache(cache[1])}]

    def run() -> Mapping[str, torch.Tensor]:
        if not copies:
            ready()
        return _results(make.model(**inputs, **arguments, **copies.pop()))

    return Step(inputs | ({} if cache is None else cache_tensors(cache[1])), run, ready=ready)


def _use_cache(make: Sampler, wanted: bool) -> dict[str, bool]:
    """The argument that says whether to keep a cache; many forwards take it among their ``**kwargs``."""
    through = make.takes("kwargs") and (wanted or hasattr(make.config.get_text_config(decoder=True), "use_cache"))
    return {"use_cache": wanted} if make.takes("use_cache") or through else {}


def _results(out: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name; those of its cache as ``kv_cache.…``."""
    found: dict[str, torch.Tensor] = {}
    for name, value in out.items():
        found |= cache_tensors(value) if name in CACHES else dict(_named(name, value))
    return found


def _decode_step(make: Sampler, family: Family, point: Mapping[str, int]) -> Step:
    """One step on top of a cache of `context` tokens, which a prefill fills (text only: images are tokens by then)."""
    from transformers.modeling_outputs import BaseModelOutput

    length = point[family.cached]
    if family.cached != "target":
        ids = {"input_ids": make.tokens(point["batch"], length)}
        return _step(make, ids, _use_cache(make, True), _filled_cache(make, point))
    before = dict(point) | {"target": point["context"]}
    for name in family.pinned:
        before[name] = pinned_size(make.config, name)
    with _unrecorded(make):
        out = make.model(**family.make(make, before), **_use_cache(make, True))
    encoded = BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state)
    step = _step(
        make,
        {"decoder_input_ids": make.tokens(point["batch"], length)},
        {"encoder_outputs": encoded, **_use_cache(make, True)},
        ("past_key_values", out.past_key_values),
    )
    return Step({**step.inputs, "encoder_outputs": out.encoder_last_hidden_state}, step.run, ready=step.ready)


def _unrecorded(make: Sampler) -> AbstractContextManager[None]:
    return on_meta(make.model) if make.device == "meta" else torch.no_grad()


def _copy_cache(cache: Any) -> Any:
    """A cache that can grow without changing *cache*; the tensors themselves are shared."""
    return copy.deepcopy(cache, {id(t): t for t in cache_tensors(cache).values()})


def cache_tensors(cache: Any) -> dict[str, torch.Tensor]:
    """Every tensor a cache holds, by name: ``kv_cache.3.keys``; recurrent states too."""
    return dict(_named("kv_cache", cache))


def _named(prefix: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _named(f"{prefix}.{name}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named(f"{prefix}.{i}", item)
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield from _named(prefix if name == "layers" else f"{prefix}.{name}", item)


def _filled_cache(make: Sampler, point: Mapping[str, int]) -> tuple[str, Any]:
    """A cache that holds `context` tokens: made directly where every layer is a plain one, else by a prefill."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=make.config)
    text = make.config.get_text_config(decoder=True)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers) or _latent(text):
        return _prefilled(make, point)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = (make.floats(point["batch"], heads, point["context"], size) for _ in range(2))
        layer.dtype, layer.device, layer.is_initialized = make.dtype, torch.device(make.device), True
    return "past_key_values", cache


def _latent(text: Any) -> bool:
    """Whether keys and values are not of the shape that the usual fields say."""
    plain = {"num_attention_heads", "hidden_size"} <= {n for n in dir(text) if not n.startswith("_")}
    return not plain or any(hasattr(text, n) for n in ("kv_lora_rank", "multi_query", "global_head_dim"))


def _prefilled(make: Sampler, point: Mapping[str, int]) -> tuple[str, Any]:
    with _unrecorded(make):
        ids = make.tokens(point["batch"], point["context"])
        keep = {"logits_to_keep": 1} if "logits_to_keep" in forward_arguments(make.model) else {}
        out = make.model(input_ids=ids, **_use_cache(make, True), **keep)
    for name in CACHES:
        if out.get(name) is not None:
            return name, out[name]
    raise ForetraceError(f"{type(make.model).__name__} keeps no cache: it has phase forward, no decode")
