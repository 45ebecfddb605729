"""The fallback chain: the ways a model is captured, tried in turn until one of them runs.

1. `sdpa`, as asked: attention is transformers' SDPA, kept as one operator; masks are built as the framework does it.
2. `plug-in attention`, where a model has no SDPA (soft caps, sinks): its attention call itself is the operator, as a
   flash kernel takes it; no mask is built.
3. `eager`: the model's own attention, operator by operator.
4. `float32`: eager, in float32, where a model mixes formats its forward does not.

Attention `absorbed` (latent attention as engines decode it, `plugins.latent`) has no other rung: it is asked for, and
a model that cannot have it says so.

The operator plug-ins and the leaf plug-ins of single classes are installed on every rung. The graph's metadata names
the rung, and what the ones before it said.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from foretrace.ir import ForetraceError, Graph

from .plugins import latent
from .plugins.attention import INTERFACE


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to capture: its name, the attention the model is built with, and a dtype where it forces one."""

    name: str
    attention: str
    dtype: str | None = None


class RefusedError(ForetraceError):
    """A model cannot be captured in this way; another may do."""


def rungs(attention: str) -> list[Rung]:
    """The chain for the *attention* that was asked for."""
    if attention == "absorbed":
        return [Rung("absorbed", latent.INTERFACE)]
    fused = [Rung("sdpa", "sdpa"), Rung("plug-in attention", INTERFACE)] if attention == "sdpa" else []
    return [*fused, Rung("eager", "eager"), Rung("float32", "eager", "float32")]


def refuse(root: torch.nn.Module, attention: str, phase: str) -> None:
    """Raise `RefusedError` where *root* was not built with the *attention* asked for, or that does not do for it."""
    built = getattr(getattr(root, "config", None), "_attn_implementation", None)
    if built not in (attention, None):
        raise RefusedError(f"the model has no {attention} attention, transformers builds it with {built}")
    if attention == latent.INTERFACE and phase != "decode":
        raise RefusedError(f"absorbed latent attention is how engines decode, not for phase {phase}")
    if attention == latent.INTERFACE and not latent.is_latent(root):
        raise RefusedError("the model has no latent attention to absorb")


def climb(name: str, chain: Sequence[Rung], attempt: Callable[[Rung], Graph]) -> Graph:
    """The graph of the first rung of *chain* that *attempt* gives one for.

    A `ForetraceError` on the first rung is the caller's to mend and ends the climb; a `RefusedError`, any error of the
    model's own forward, or any at all on a rung that nobody asked for, goes on to the next. Raises `ForetraceError`
    with each rung's reason when none is left.
    """
    reasons: dict[str, list[str]] = {}
    first: Exception | None = None
    for rung in chain:
        try:
            graph = attempt(rung)
        except ForetraceError as e:
            if rung is chain[0] and not isinstance(e, RefusedError):
                raise
            reasons.setdefault(str(e), []).append(rung.name)
        except Exception as e:  # the model's own code: whatever it raises
            first = first or e
            reasons.setdefault(_where(e), []).append(rung.name)
        else:
            metadata = {**graph.metadata, "rung": rung.name}
            metadata |= {f"refused.{', '.join(names)}": reason for reason, names in reasons.items()}
            return replace(graph, metadata=metadata)
    tried = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if first is None:
        raise ForetraceError(f"{name}: {tried}")
    raise ForetraceError(f"{name}: its forward failed on the meta device ({tried})") from first


def _where(error: Exception) -> str:
    """One line: the error, and the last lines of the model's own code that it passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/transformers/models/" in f.filename]
    places = ", ".join(f"{f.filename.rsplit('/', 1)[1]}:{f.lineno} in {f.name}" for f in frames[-2:])
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" + (f" at {places}" if places else "")
