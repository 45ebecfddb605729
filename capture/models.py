"""MODEL → something that can be run: a catalogue or hub name, a folder with config.json, or package.module:function."""

import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import yaml

from foretrace.ir import ForetraceError, UnknownNameError, parse_dtype

from .families import Family, Recipe, auto_class, recipe_of, text_alone
from .plugins import attention as whole
from .plugins import latent

CATALOGUE = Path(__file__).with_name("catalogue")
"""Published configurations of well-known models as compact tables of our own, one file a group of families.

A name answers to its hub name and to the part after the slash. `config` holds the arguments of the transformers
configuration class for `model_type`; everything not named keeps that class's default, so all sizes are named.
`parameters` is the count the publisher states, or that the hub shows for the checkpoint, tied weights once (null where
we are not certain); a test builds each model and compares.
"""


@dataclass(frozen=True)
class PretrainedModel:
    """A Hugging Face model: its configuration, and the dtype its checkpoint is published in.

    `recipe` says how it is built and fed; by default what its configuration asks for.
    """

    name: str
    config: Any
    dtype: str
    recipe: Recipe | None = None

    @property
    def family(self) -> Family:
        """What kind of model it is."""
        return self._recipe.family

    @property
    def _recipe(self) -> Recipe:
        return self.recipe or recipe_of(self.name, self.config)

    def without_images(self) -> "PretrainedModel | None":
        """The model fed with text alone; None where it takes no images."""
        recipe = text_alone(self._recipe, self.config)
        return None if recipe is None else replace(self, recipe=recipe)

    def build(self, dtype: str | None, attention: str, device: str = "meta") -> torch.nn.Module:
        """The model with random (on meta: no) weights, in eval mode, gradients off."""
        weights = weight_dtype(dtype or self.dtype)
        for plugin in (whole, latent):
            if attention == plugin.INTERFACE:
                plugin.register()
        layers = getattr(self.config.get_text_config(decoder=True), "num_hidden_layers", 1)
        if not (isinstance(layers, int) and 0 < layers <= MAX_LAYERS):
            raise ForetraceError(f"{self.name}: num_hidden_layers: expected 1 to {MAX_LAYERS}, got {layers!r}")
        auto = auto_class(self._recipe.auto)
        try:
            with torch.device(device):
                try:
                    model = auto.from_config(self.config, dtype=weights, attn_implementation=attention)
                except ValueError as e:  # models from before attention was exchangeable have only their own
                    if "does not support an attention implementation" not in str(e):
                        raise
                    model = auto.from_config(self.config, dtype=weights, attn_implementation="eager")
        except ImportError as e:
            raise ForetraceError(f"{self.name} needs a package that is not installed: {_first_line(e)}") from e
        except Exception as e:  # a configuration that transformers read and the model cannot be made from
            if attention not in ("sdpa", "eager"):  # or an attention of ours that its code has no place for
                raise
            raise ForetraceError(f"{self.name}: cannot be built: {type(e).__name__}: {_first_line(e)}") from e
        model.to(device).eval().requires_grad_(False)  # a few make weights without asking for the device
        return model  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class UserModel:
    """What a user's ``package.module:function`` returned: a module, example inputs (args, kwargs), and where training
    it is more than a forward, a loss and a backward, the function ``step(module, *args, **kwargs)`` that does it."""

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    step: Callable[..., Any] | None = None


Model = PretrainedModel | UserModel
MAX_LAYERS = 10_000  # each costs milliseconds to build even without weights
_WEIGHT_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def weight_dtype(name: str) -> torch.dtype:
    """The torch dtype of weights called *name*; `ForetraceError` for formats torch cannot run a model in."""
    plain = parse_dtype(name).name
    if plain not in _WEIGHT_DTYPES:
        raise ForetraceError(f"--dtype {name}: a model is captured in {', '.join(_WEIGHT_DTYPES)}, got {plain}")
    return _WEIGHT_DTYPES[plain]


def resolve_model(spec: str) -> Model:
    """The model that *spec* names; see the module's docstring for its forms.

    Raises `UnknownNameError` with the nearest catalogue names, or `ForetraceError` saying what is wrong with a folder,
    a configuration or a function.
    """
    path = Path(spec)
    if path.suffix == ".onnx":
        raise ForetraceError(
            f"{spec}: an ONNX file is captured and replayed, not run here; measure the PyTorch model it came from"
        )
    if path.is_dir():
        return _from_folder(path)
    if ":" in spec:
        return _from_function(spec)
    name = catalogue_name(spec)
    if name is not None:
        entry = catalogue()[name]
        return _checked(PretrainedModel(name, _config(name, entry["config"]), entry["dtype"]))
    if path.exists():
        raise ForetraceError(f"{spec}: a model is a name, a folder with config.json, or package.module:function")
    return _from_hub(spec)


@lru_cache
def catalogue() -> dict[str, Any]:
    """Hub name → entry (parameters, dtype, source, config) of every shipped configuration."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    models: dict[str, Any] = {}
    for file in sorted(CATALOGUE.glob("*.yaml")):
        models |= yaml.load(file.read_text(encoding="utf-8"), loader)["models"]
    return models


def catalogue_name(spec: str) -> str | None:
    """The hub name that *spec* answers to (any case, with or without its organisation); None if it is not shipped."""
    wanted = spec.lower()
    for name in catalogue():
        if wanted in (name.lower(), name.lower().split("/")[1]):
            return name
    return None


def _known_names() -> list[str]:
    return [n for name in catalogue() for n in (name, name.split("/")[1])]


def _config(name: str, values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = dict(values)
    kind = values.pop("model_type", None)
    if not isinstance(kind, str):
        raise ForetraceError(f"{name}: the configuration names no model_type")
    if kind not in CONFIG_MAPPING:
        raise UnknownNameError("model_type", kind, CONFIG_MAPPING.keys(), f"in {name}")
    try:
        config = AutoConfig.for_model(kind, **values)
    except Exception as e:  # transformers validates with errors of many types: all mean the file is wrong
        raise ForetraceError(f"{name}: transformers refuses the configuration: {e}") from e
    return config


def _checked(model: PretrainedModel) -> PretrainedModel:
    _ = model.family  # says now, not when it is built, that nobody knows how to feed it
    return model


def _from_folder(folder: Path) -> PretrainedModel:
    file = folder / "config.json"
    if not file.is_file():
        raise ForetraceError(f"{folder}: has no config.json")
    if file.stat().st_size > 16 << 20:
        raise ForetraceError(f"{file}: larger than 16 MiB, not a model configuration")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ForetraceError(f"{file}: not valid JSON: {e}") from e
    if not isinstance(values, dict):
        raise ForetraceError(f"{file}: expected an object with a model_type, got {type(values).__name__}")
    if "auto_map" in values and values.get("model_type") not in _builtin_types():
        raise ForetraceError(f"{file}: needs code that comes with the checkpoint (auto_map), which is not executed")
    dtype = values.get("dtype", values.get("torch_dtype")) or "float32"
    return _checked(PretrainedModel(folder.resolve().name, _config(str(file), values), str(dtype)))


def _builtin_types() -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING.keys()


def _from_hub(spec: str) -> PretrainedModel:
    if "/" not in spec:
        raise UnknownNameError("model", spec, _known_names(), "names on the Hugging Face hub are ORGANISATION/NAME")
    from transformers import AutoConfig

    local = not _hub_is_reachable()  # then only what is cached; a client's retries would take a minute to say so
    try:
        config = AutoConfig.from_pretrained(spec, trust_remote_code=False, local_files_only=local)
    except Exception as e:  # offline, gated, missing, remote code: one line each, whatever the type
        reason = "no network" if local else (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UnknownNameError("model", spec, _known_names(), f"the Hugging Face hub answered: {reason}") from e
    return _checked(PretrainedModel(spec, config, str(config.dtype or "float32").removeprefix("torch.")))


def _hub_is_reachable() -> bool:
    """Whether the hub's name resolves, or a proxy is there to resolve it."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _from_function(spec: str) -> UserModel:
    return user_model(spec, find_function(spec))


def find_function(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, the user's own file beside them included."""
    module_name, _, function_name = spec.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # the user's file: whatever it raises
        raise ForetraceError(f"cannot import {module_name!r} of {spec!r}: {type(e).__name__}: {_first_line(e)}") from e
    function = getattr(module, function_name, None)
    if function is None:
        names = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise UnknownNameError(f"function of {module_name}", function_name, names)
    found: Callable[..., Any] = function
    return found


def user_model(spec: str, function: Callable[[], Any]) -> UserModel:
    """What *function*, known as *spec*, builds; `ForetraceError` where that is no module with example inputs."""
    try:
        result = function()
    except ForetraceError:
        raise
    except Exception as e:
        raise ForetraceError(f"{spec}: it raised {type(e).__name__}: {_first_line(e)}") from e
    is_model = isinstance(result, tuple) and len(result) in (2, 3) and isinstance(result[0], torch.nn.Module)
    if not is_model or not all(callable(step) for step in result[2:]):
        raise ForetraceError(
            f"{spec}: expected a tuple (module, example_inputs) or (module, example_inputs, step), "
            f"got {type(result).__name__}"
        )
    root, inputs, step = (*result, None)[:3]
    if isinstance(inputs, Mapping):
        return UserModel(spec, root, (), dict(inputs), step)
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, tuple | list):
        raise ForetraceError(f"{spec}: example inputs are a tuple, a dict or a tensor, got {type(inputs).__name__}")
    return UserModel(spec, root, tuple(inputs), {}, step)
