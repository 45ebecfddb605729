"""Inputs of a forward call, from a configuration and the sizes of a point: token ids, pixels, image grids, audio.

Floats are on the wanted device (meta: shapes only). On meta integers are real and stay on the CPU: what reads them
(position grids, image-token scatter) runs as it does for real.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foretrace.ir import ForetraceError

Inputs = dict[str, torch.Tensor]
Point = Mapping[str, int]


@dataclass(frozen=True)
class Sampler:
    """Makes tensors for *model* on *device*: random where they are computed with, zeros or shapes on meta."""

    model: torch.nn.Module
    config: Any
    device: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floats."""
        return next((p.dtype for p in self.model.parameters() if p.dtype.is_floating_point), torch.float32)

    def takes(self, name: str) -> bool:
        """Whether the model's forward has an argument called *name*."""
        return name in forward_arguments(self.model)

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        """Token ids; zeros on meta, where no id means more than another."""
        shape = (batch, length)
        if self.device == "meta":
            return torch.zeros(shape, dtype=torch.long)
        return torch.randint(0, vocabulary(self.config), shape, device=self.device)

    def floats(self, *shape: int) -> torch.Tensor:
        """Activations from outside: pixels, waveforms, mel features."""
        if self.device == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def integers(self, values: Any) -> torch.Tensor:
        """Integers whose content matters: grids, sizes, positions."""
        return torch.as_tensor(values, dtype=torch.long, device="cpu" if self.device == "meta" else self.device)


def forward_arguments(model: torch.nn.Module) -> frozenset[str]:
    """Names of the arguments of *model*'s forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def vocabulary(config: Any) -> int:
    """Number of token ids that *config* knows."""
    text = config.get_text_config()
    return int(getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None) or 2)


def text(make: Sampler, point: Point) -> Inputs:
    """Token ids (batch, seq)."""
    return {"input_ids": make.tokens(point["batch"], point["seq"])}


def source_and_target(make: Sampler, point: Point) -> Inputs:
    """An encoder's token ids (batch, seq) and a decoder's (batch, target)."""
    ids = make.tokens(point["batch"], point["seq"])
    return {"input_ids": ids, "decoder_input_ids": make.tokens(point["batch"], point["target"])}


def image(make: Sampler, point: Point) -> Inputs:
    """Pixels (batch, channels, height, width)."""
    channels = _first(make.config, ("num_channels", "in_channels", "in_chans"), 3)
    return {"pixel_values": make.floats(point["batch"], channels, point["height"], point["width"])}


def image_and_text(make: Sampler, point: Point) -> Inputs:
    """A contrastive pair: pixels (batch, 3, height, width) and token ids (batch, seq)."""
    return text(make, point) | {"pixel_values": make.floats(point["batch"], 3, point["height"], point["width"])}


def waveform(make: Sampler, point: Point) -> Inputs:
    """Samples of audio (batch, samples), as many as give exactly `frames` feature frames.

    Every convolution of the feature extractor then divides without a rest: sizes are linear in `frames`.
    """
    samples = point["frames"]
    for kernel, stride in reversed(list(zip(make.config.conv_kernel, make.config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return {"input_values": make.floats(point["batch"], samples)}


def features(make: Sampler, point: Point) -> Inputs:
    """Filter-bank features as the model's own forward wants them, `frames` long."""
    width = _first(make.config, ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel"), 80)
    batch, frames = point["batch"], point["frames"]
    if make.takes("input_values"):  # spectrogram transformers: (batch, time, bins)
        return {"input_values": make.floats(batch, frames, width)}
    return {"input_features": make.floats(batch, frames, width)}


def speech(make: Sampler, point: Point) -> Inputs:
    """Audio for an encoder and token ids (batch, target) for a decoder."""
    batch, frames = point["batch"], point["frames"]
    target = {"decoder_input_ids": make.tokens(batch, point["target"])}
    main = getattr(make.model, "main_input_name", "input_features")
    if main == "input_values":
        return {"input_values": make.floats(batch, frames)} | target
    bins = _first(make.config, ("num_mel_bins", "input_feat_per_channel"), 80)
    mel_first = getattr(make.config, "model_type", "") == "whisper"  # (batch, bins, frames); others have time first
    return {"input_features": make.floats(batch, *((bins, frames) if mel_first else (frames, bins)))} | target


def vision_language(make: Sampler, point: Point) -> Inputs:
    """One image in front of `seq` text tokens, its place held by image tokens; with the grid where the model has one.

    Raises `ForetraceError` where the model does not say how many tokens an image becomes.
    """
    pixels = image_grid(make, point) if make.takes("image_grid_thw") else tiles(make, point)
    ids = make.tokens(point["batch"], point["seq"])
    token = _first(make.config, ("image_token_id", "image_token_index", "media_token_id"), None)
    if token is None or make.takes("cross_attention_mask"):  # the image is attended to, not spliced in
        return {"input_ids": ids} | pixels
    if make.device != "meta":
        ids = torch.where(ids == token, (token + 1) % vocabulary(make.config), ids)
    count = image_tokens(make, pixels, point["batch"])
    held = torch.full((point["batch"], count), token, dtype=torch.long, device=ids.device)
    inputs = {"input_ids": torch.cat([held, ids], 1)} | pixels
    if "image_grid_thw" in pixels and make.takes("position_ids"):
        inputs["position_ids"] = _positions(make, pixels["image_grid_thw"][0].tolist(), inputs["input_ids"].shape)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if make.takes(name):
            inputs[name] = (inputs["input_ids"] == token).long()
    return inputs


def _positions(make: Sampler, grid: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Positions (3, batch, length) in time, row and column: the image's grid, then text from where that ends.

    As Qwen2-VL numbers them (arXiv:2409.12191, section 2.1).
    """
    merge = int(getattr(make.config.vision_config, "spatial_merge_size", 1))
    sizes = (grid[0], grid[1] // merge, grid[2] // merge)
    places = torch.cartesian_prod(*(torch.arange(n) for n in sizes)).T
    text = torch.arange(shape[1] - places.shape[1]) + max(sizes)
    return make.integers(torch.cat([places, text.expand(3, -1)], 1)[:, None].expand(3, *shape))


def image_grid(make: Sampler, point: Point) -> Inputs:
    """Patches of one image a sequence, flattened and packed as Qwen-VL's processor does, and their (t, h, w) grid."""
    vision = make.config.vision_config
    patch = int(vision.patch_size)
    merge = int(getattr(vision, "spatial_merge_size", 1))
    time = int(getattr(vision, "temporal_patch_size", 1) or 1)
    rows, columns = (max(point[n] // (patch * merge), 1) * merge for n in ("height", "width"))
    channels = _first(vision, ("in_channels", "in_chans", "num_channels"), 3)
    pixels = make.floats(point["batch"] * rows * columns, channels * time * patch * patch)
    return {"pixel_values": pixels, "image_grid_thw": make.integers([[1, rows, columns]] * point["batch"])}


def tiles(make: Sampler, point: Point) -> Inputs:
    """Pixels of one image a sequence, with the further arguments that tiling models ask for."""
    batch, height, width = point["batch"], point["height"], point["width"]
    shape: tuple[int, ...] = (batch, 3, height, width)
    if make.takes("aspect_ratio_ids"):  # mllama: (batch, images, tiles, ...)
        count = int(make.config.vision_config.max_num_tiles)
        ids, mask = make.integers([[1]] * batch), make.integers([[[1] + [0] * (count - 1)]] * batch)
        pixels = make.floats(batch, 1, count, 3, height, width)
        cross = make.integers([[[[1] + [0] * (count - 1)]] * point["seq"]] * batch)
        more = {"aspect_ratio_ids": ids, "aspect_ratio_mask": mask, "cross_attention_mask": cross}
        return {"pixel_values": pixels} | more
    if make.takes("pixel_attention_mask"):  # idefics: (batch, images, ...)
        return {"pixel_values": make.floats(batch, 1, 3, height, width)}
    if hasattr(make.config, "image_grid_pinpoints") and make.takes("image_sizes"):  # llava-next: a base image and tiles
        shape = (batch, _anyres_tiles(make.config, height, width), 3, height, width)
    asked = make.takes("image_sizes") and (len(shape) == 5 or _has_any_size(make.config))
    sizes = {"image_sizes": make.integers([[height, width]] * batch)} if asked else {}
    return {"pixel_values": make.floats(*shape)} | sizes


def _has_any_size(config: Any) -> bool:
    """Whether the vision side takes images as they come (Pixtral), so that it must be told their sizes."""
    return getattr(config.vision_config, "model_type", "") == "pixtral"


def _anyres_tiles(config: Any, height: int, width: int) -> int:
    """1 (the image as a whole) and the tiles of the pinpoint that holds an image of one tile's size."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return int(image_size_to_num_patches([height, width], config.image_grid_pinpoints, config.vision_config.image_size))


def image_tokens(make: Sampler, pixels: Inputs, batch: int) -> int:
    """How many tokens one image becomes: what the model's own vision side gives for *pixels*."""
    merge = int(getattr(getattr(make.config, "vision_config", None), "spatial_merge_size", 1))
    if "image_grid_thw" in pixels:
        return int(pixels["image_grid_thw"][0].prod()) // merge**2
    model: Any = make.model
    if not hasattr(model, "get_image_features"):
        raise ForetraceError(f"{type(model).__name__} does not say how many tokens an image becomes")
    from .recorder import on_meta

    if make.device == "meta":
        with on_meta(model):
            found = model.get_image_features(**pixels)
    else:
        with torch.no_grad():
            found = model.get_image_features(**pixels)
    for name in ("pooler_output", "last_hidden_state"):
        found = value if (value := getattr(found, name, None)) is not None else found
    rows = [found] if isinstance(found, torch.Tensor) else list(found)
    return sum(r.numel() // r.shape[-1] for r in rows) // batch


def _first(config: Any, names: tuple[str, ...], default: Any) -> Any:
    """The first of *names* that *config* (or its text part) has a value for."""
    for holder in (config, config.get_text_config() if hasattr(config, "get_text_config") else config):
        for name in names:
            if (value := getattr(holder, name, None)) is not None:
                return value
    return default
