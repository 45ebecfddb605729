"""Model families: which of transformers' auto classes builds a model, what its sizes are called, how it is fed.

One table, `FAMILIES`; a model belongs to the first row whose auto class knows its configuration, unless the
configuration names an architecture of another row. Nothing else in this room asks what kind of model it has.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from foretrace.ir import ForetraceError

from . import inputs
from .inputs import Inputs, Point, Sampler

DESCRIPTIONS = {
    "batch": "sequences (images, clips) in the step",
    "seq": "new tokens of each sequence",
    "context": "tokens of each sequence already in the KV cache",
    "target": "new tokens of each decoder sequence",
    "frames": "feature frames of each clip",
    "height": "pixels from top to bottom of an image",
    "width": "pixels from left to right of an image",
}
DEFAULTS = {"batch": 1, "seq": 128, "context": 512, "target": 128, "frames": 500}


@dataclass(frozen=True)
class Family:
    """A kind of model: `lengths` are its open symbols beside batch, `pinned` those fixed unless a user asks."""

    name: str
    autos: tuple[str, ...]
    make: Callable[[Sampler, Point], Inputs]
    lengths: tuple[str, ...]
    pinned: tuple[str, ...] = ()
    cached: str = ""  # the symbol that grows by decoding; none: no prefill, no decode
    main: tuple[str, ...] = field(default=())  # main_input_name of base models (AutoModel) that are fed like this

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases that mean something for this family."""
        return ("forward", "prefill", "decode", "train") if self.cached else ("forward", "train")

    def names(self, phase: str) -> tuple[str, ...]:
        """Symbols of *phase*: what is read once and cached (pixels) is no part of decoding."""
        if phase == "decode":
            return ("batch", *self.lengths, "context")
        return ("batch", *self.lengths, *self.pinned)


FAMILIES = (
    Family(
        "vision-language", ("ImageTextToText",), inputs.vision_language, ("seq",), ("height", "width"), cached="seq"
    ),
    Family("speech encoder-decoder", ("SpeechSeq2Seq",), inputs.speech, ("target",), ("frames",), cached="target"),
    Family("audio", ("CTC", "AudioClassification"), inputs.waveform, ("frames",), main=("input_values",)),
    Family("encoder-decoder", ("Seq2SeqLM",), inputs.source_and_target, ("seq", "target"), cached="target"),
    Family("image-text", ("ZeroShotImageClassification",), inputs.image_and_text, ("seq",), ("height", "width")),
    Family("image", ("ImageClassification",), inputs.image, (), ("height", "width"), main=("pixel_values",)),
    Family("encoder", ("MaskedLM",), inputs.text, ("seq",), main=("input_ids",)),
    Family("decoder", ("CausalLM",), inputs.text, ("seq",), cached="seq"),
)
FEATURES = Family(
    "audio features", ("AudioClassification",), inputs.features, (), ("frames",), main=("input_features",)
)


TEXT_ALONE = Family("vision-language, text alone", ("ImageTextToText",), inputs.text, ("seq",), cached="seq")


@dataclass(frozen=True)
class Recipe:
    """How one model is built and fed: its family, and the auto class (``AutoModelForCausalLM``) that builds it."""

    family: Family
    auto: str


def recipe_of(name: str, config: Any) -> Recipe:
    """The recipe for *config*: by the architecture it names, else by its type. `ForetraceError` where none fits."""
    rows = [(f, f"AutoModelFor{task}") for f in (*FAMILIES, FEATURES) for task in f.autos]
    wanted = (getattr(config, "architectures", None) or [None])[0]
    known = [(f, auto) for f, auto in rows if _knows(auto, config)]
    by_name = [(f, auto) for f, auto in known if wanted in _architectures(auto, config)]
    if getattr(config, "is_decoder", False) and not getattr(config, "is_encoder_decoder", False):
        known = sorted(known, key=lambda row: row[0].name != "decoder")
    if (by_name or known) and not (not by_name and wanted in _architectures("AutoModel", config)):
        family, auto = (by_name or known)[0]
        return Recipe(_audio(family, config), auto)
    if _knows("AutoModel", config):
        main = auto_class("AutoModel")._model_mapping[type(config)].main_input_name
        for family in (*FAMILIES, FEATURES):
            if main in family.main:
                return Recipe(_audio(family, config), "AutoModel")
    raise ForetraceError(
        f"{name}: no way is known to feed a {config.model_type!r} model by name; "
        "write a function that returns (module, example_inputs) and pass package.module:function"
    )


def text_alone(recipe: Recipe, config: Any) -> Recipe | None:
    """How a model that *recipe* shows an image to is fed without one; None for models that are shown none."""
    if recipe.family.name != "vision-language":
        return None
    if _knows("AutoModelForCausalLM", config):
        return Recipe(next(f for f in FAMILIES if f.name == "decoder"), "AutoModelForCausalLM")
    return Recipe(TEXT_ALONE, recipe.auto)


def _audio(family: Family, config: Any) -> Family:
    """Audio models without a convolutional front end take features, not samples."""
    return FEATURES if family.name == "audio" and not hasattr(config, "conv_stride") else family


def auto_class(name: str) -> Any:
    """The class of transformers called *name*."""
    import transformers

    return getattr(transformers, name)


def _knows(auto: str, config: Any) -> bool:
    return type(config) in auto_class(auto)._model_mapping


def _architectures(auto: str, config: Any) -> tuple[str, ...]:
    if not _knows(auto, config):
        return ()
    found = auto_class(auto)._model_mapping._model_mapping[config.model_type]
    return (found,) if isinstance(found, str) else tuple(found)


def pinned_size(config: Any, name: str) -> int:
    """What *config* says of a pinned symbol: an image's height and width, a clip's frames."""
    vision = getattr(config, "vision_config", None) or config
    if name == "frames":
        positions = getattr(config, "max_source_positions", None)
        return int(getattr(config, "max_length", None) or 1024) if positions is None else 2 * int(positions)
    size = getattr(vision, "image_size", None) or (448 if hasattr(vision, "spatial_merge_size") else 224)
    if isinstance(size, list | tuple):
        size = size[0 if name == "height" else -1]
    elif isinstance(size, dict):
        size = size.get(name, 224)
    return int(size)


_POSITIONS = re.compile(r"(^|\.|_)(wpe|pos|position|positions|embed_positions|position_embeddings?)($|\.|_)")
_IMAGE_SIDE = re.compile(r"vision|visual|image|patch|pixel")


def position_limits(root: torch.nn.Module, family: Family) -> dict[str, int]:
    """Symbol → most positions a learned table of *root* has rows for (GPT-2's 1024, BERT's 512, CLIP's 77)."""
    limits: dict[str, int] = {}
    for name, rows in _position_tables(root):
        symbol = "" if _IMAGE_SIDE.search(name) else _limited(name, family)
        if symbol:
            limits[symbol] = min(limits.get(symbol, rows), rows)
    return limits


def _position_tables(root: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Every table that positions look themselves up in, and for how many it has rows."""
    for name, module in root.named_modules():
        if isinstance(module, torch.nn.Embedding) and _POSITIONS.search(name):
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            yield name, module.num_embeddings - (getattr(module, "offset", 0) or padding)
    for name, table in root.named_buffers():
        if name.endswith("embed_positions") and table.dim() == 2:
            yield name, table.shape[0]


def _limited(name: str, family: Family) -> str:
    """The symbol that a position table called *name* limits."""
    if "target" in family.lengths and "decoder" in name:
        return "target"
    return "seq" if "seq" in family.lengths else ""
