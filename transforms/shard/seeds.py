"""Which parameters are divided, and how: the model's own plan, rules for models that ship none, or a user's."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from foretrace.ir import ForetraceError, Graph, Role, UnknownNameError

from .placement import Placement, shard
from .writer import bare

STYLES: Final = ("colwise", "rowwise", "vocabulary", "replicate", "colwise_gathered", "dim-2", "dim-1")
"""colwise: a linear's outputs; rowwise: its inputs; vocabulary: rows of an embedding; replicate: not at all.

colwise_gathered: colwise, and every rank gathers the result; dim-2, dim-1: that dim of the parameter as it is stored.
"""

USUAL: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "*.q_proj", "*.k_proj", "*.v_proj", "*.qkv_proj", "*.q_b_proj", "*.kv_b_proj", "*.query_key_value",
            "*.c_attn", "*.Wqkv", "*.query", "*.key", "*.value", "*.in_proj_qkv",
            "*Attention.q", "*Attention.k", "*Attention.v",
            "*.gate_proj", "*.up_proj", "*.gate_up_proj", "*.c_fc", "*.fc1", "*.fc_in", "*.dense_h_to_4h", "*.w1",
            "*.w3", "*.wi", "*.wi_0", "*.wi_1", "*.intermediate.dense",
            "*.q_lin", "*.k_lin", "*.v_lin", "*.lin1",
            "lm_head", "embed_out", "output_layer", "*.lm_head", "vocab_projector", "*.vocab_projector",
        ),
        "colwise",
    ),
    **dict.fromkeys(
        (
            "*.o_proj", "*.out_proj", "*.down_proj", "*.c_proj", "*.fc2", "*.fc_out", "*.dense_4h_to_h", "*.w2", "*.wo",
            "*.attention.dense", "*Attention.o", "*.self_attention.dense", "*.attention.output.dense", "*.output.dense",
            "*.self_attn.dense", "*.out_lin", "*.lin2",
        ),
        "rowwise",
    ),
    **dict.fromkeys(
        (
            "*.embed_tokens", "*.wte", "*.word_embeddings", "*.embed_in", "*.tok_embeddings", "embed_tokens", "wte",
            "shared", "*.shared", "*.embeddings",
        ),
        "vocabulary",
    ),
}  # fmt: skip
"""Module pattern → style, by the names that Hugging Face models give (Megatron-LM, arXiv:1909.08053, section 3)."""

_NUMBER: Final = re.compile(r"\.\d+\.")

_OWN: Final = {
    "colwise": "colwise", "packed_colwise": "colwise", "local_colwise": "colwise", "colwise_rep": "colwise",
    "rowwise": "rowwise", "packed_rowwise": "rowwise", "local_rowwise": "rowwise", "rowwise_rep": "rowwise",
    "embedding_rowwise": "vocabulary", "colwise_gather_output": "colwise_gathered", "rowwise_split_input": "rowwise",
}  # fmt: skip
"""transformers' styles in ours."""

_BETWEEN: Final = re.compile(r"(^|\.)(q|k|v|kv|qkv|query|key|value|query_key_value|gate_up)(_b)?(_proj)?$")
"""Modules whose result can stay divided though transformers gathers it: attention and gates go head by head."""

_DIMS: Final = {"colwise": "dim-2", "colwise_gathered": "dim-2", "rowwise": "dim-1"}
"""What transformers' styles say of a parameter that is named itself: the dim of a linear's weight [out, in]."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """What is divided before anything is run."""

    places: dict[int, Placement]
    """By tensor id."""
    padded: frozenset[int] = frozenset()
    """Tensors whose divided dim is filled up where it does not divide (vocabularies)."""
    gathered: frozenset[str] = frozenset()
    """Modules whose results every rank gathers."""


def styles_of(graph: Graph, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Module pattern → style for *graph*: *given*, else the model's own plan over the usual names.

    Raises `UnknownNameError` for a style that does not exist.
    """
    if given is not None:
        for pattern, style in given.items():
            if style not in STYLES:
                raise UnknownNameError("sharding style", style, STYLES, f"of {pattern!r}")
        return dict(given)
    own = {k: _OWN[v] for k, v in _shipped(graph).items() if v in _OWN}
    names = {_NUMBER.sub(".*.", t.name) for t in graph.tensors if t.role is Role.PARAMETER} if own else set()
    for pattern, style in own.items():
        if any(fnmatchcase(name, pattern) for name in names):
            own[pattern] = _DIMS.get(style, style)
        elif style == "colwise_gathered" and _BETWEEN.search(pattern):
            own[pattern] = "colwise"
    return {**USUAL, **{k: v for k, v in own.items() if not k.endswith("lm_head")}}  # logits stay divided for the loss


def _shipped(graph: Graph) -> dict[str, str]:
    try:
        plan = json.loads(graph.metadata.get("tp_plan", "{}"))
    except ValueError:
        plan = None
    if not isinstance(plan, dict):
        raise ForetraceError(f"{graph.name}: metadata tp_plan: expected a JSON object of module patterns and styles")
    return {str(k): str(v) for k, v in plan.items()}


def seeds_of(graph: Graph, styles: Mapping[str, str]) -> Seeds:
    """How the parameters of *graph* are divided."""
    transposed, columns = _uses(graph)
    style_of: dict[str, str | None] = {}  # equal layers have equal styles, unless a pattern names a number
    numbered = any(c.isdigit() for c in "".join(p for p in styles if p not in USUAL))
    found: dict[int, Placement] = {}
    padded, gathered = set(), set()
    for i, tensor in enumerate(graph.tensors):
        if tensor.role is not Role.PARAMETER or tensor.storage != i:
            continue
        module, _, leaf = tensor.name.rpartition(".")
        key = tensor.name if numbered else _NUMBER.sub(".*.", tensor.name)
        if key not in style_of:
            style_of[key] = _style(module, leaf, styles)
        style = style_of[key]
        place = _placed(style, leaf, len(tensor.shape), i in transposed, i in columns)
        if place is not None and place.dim < len(tensor.shape):
            found[i] = place
            if style == "vocabulary" or any(head in module for head in ("lm_head", "embed_out", "vocab_projector")):
                padded.add(i)
            if style == "colwise_gathered":
                gathered.add(module)
    return Seeds(found, frozenset(padded), frozenset(gathered))


def _style(module: str, leaf: str, styles: Mapping[str, str]) -> str | None:
    """That of the longest pattern that fits the module, or the parameter where it is a module's own (experts).

    A parameter X_bias goes with X.
    """
    names = (module, f"{module}.{leaf}", f"{module}.{leaf.removesuffix('_bias')}")
    fits = [p for p in styles if any(fnmatchcase(name, p) for name in names)]
    return styles[max(fits, key=len)] if fits else None


def _uses(graph: Graph) -> tuple[set[int], set[int]]:
    """Parameters that products read through a transpose (stored [n, k]), and those that they read as they are."""
    transposed: set[int] = set()
    plain: set[int] = set()
    of: dict[int, int] = {}
    for op in graph.ops:
        if op.phase != "forward":
            break
        function = bare(op.name)
        if function in ("t", "transpose", "permute", "mT") and op.inputs:
            if graph.tensors[op.inputs[0]].role is Role.PARAMETER:
                transposed.add(op.inputs[0])
            of[op.outputs[0]] = op.inputs[0]
        for t in op.inputs:
            if graph.tensors[t].role is Role.PARAMETER and function not in ("t", "transpose"):
                plain.add(t)
    return transposed, plain - transposed


def _placed(style: str | None, leaf: str, rank: int, transposed: bool, plain: bool) -> Placement | None:
    if style in (None, "replicate") or not rank:
        return None
    if style == "vocabulary":
        return shard(0) if rank == 2 and leaf == "weight" else None
    if leaf.endswith("bias") and (rank == 1 or leaf.endswith("_bias")):
        return shard(rank - 1) if style in ("colwise", "colwise_gathered") else None
    if rank < 2:
        return None
    if style in ("dim-2", "dim-1"):
        return shard(rank + int(style.removeprefix("dim")))
    out, inner = (rank - 2, rank - 1) if transposed or not plain else (rank - 1, rank - 2)
    return shard(inner if style == "rowwise" else out)


def load_styles(path: str) -> dict[str, str]:
    """Module pattern → style from a YAML file of yours. Raises `ForetraceError` that names the place."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise ForetraceError(f"{path}: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in data.items()):
        raise ForetraceError(f"{path}: expected lines like '*.q_proj: colwise'")
    return data
