"""Which kernel library a measured row ran on, from what its table says of how it was made: plain rules, one table."""

import re
from collections.abc import Callable
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Mask

from .tables import Table, Text, same_text

RULES: Final = (
    ("source", r"^(neusight|llmcompass|vtrain)_", "eager"),
    ("source", r"^(aic|vidur|pipeweave|llmservingsim|infersim|simumax)_", "serving"),
    ("source", r"^aic_trtllm", "trtllm"),
    ("source", r"^aic_vllm", "vllm"),
    ("source", r"^aic_sglang", "sglang"),
    ("timing", r"eager", "eager"),  # the framework dispatches each call
    ("impl", r"_eager$", "eager"),
    ("impl", r"^nccl", "serving"),  # of collectives, what the host adds is in their own price
    ("impl", r"^TRTLLM", "trtllm"),
    ("impl", r"^vLLM_", "vllm"),
    ("impl", r"^SGLang_", "sglang"),
    ("software", r"^eager$", "eager"),
    ("software", r"^compiled$", "compiled"),
    ("software", r"^serving$", "serving"),
    ("software", r"^trtllm$", "trtllm"),
    ("software", r"^vllm$", "vllm"),
    ("software", r"^sglang$", "sglang"),
)
"""(column, pattern found in its text, software); a later rule is stronger."""

DEFAULT: Final = "serving"


def software_of(table: Table) -> Text:
    """[n] The software (`CostModel.price`) of each row; `DEFAULT` where nothing says."""
    found = same_text("", table.rows)
    for column, pattern, software in RULES:
        if column in table:
            found = found.joined(table.text(column), _rule(pattern, software))
    return found.map(lambda text: text or DEFAULT)


def _rule(pattern: str, software: str) -> Callable[[str, str], str]:
    return lambda old, said: software if re.search(pattern, said) else old


LOOPED: Final = r"^(cudagraph|loop)"
"""What `timing` begins with where many calls stand between two clocks: the host's time of each is not in the row."""


def looped(table: Table) -> Mask:
    """[n] whether each row is the device's time alone, whatever its software."""
    return table.text("timing", "").are(re.compile(LOOPED).match)


COPIES: Final = (
    ("", 1.0),
    ("vidur_", 6.0),  # a layer's other weights run between two calls of one of its products
    ("aic_", 6.0),  # a graph of six calls; of 1, 3, 6 and 30 copies this fits calib's products best (docs/design.md)
    ("foretrace_operators", np.inf),  # inputs take turns past the cache
)
"""(pattern of the source, sets of operands that its measuring loop takes turns with); a later rule is stronger."""


def copies_of(table: Table) -> Floats:
    """[n] The sets of operands that take turns where each row was measured."""
    source = table.text("source", "")
    found = np.ones(table.rows)
    for pattern, copies in COPIES:
        found = np.where(source.are(re.compile(pattern).match), copies, found)
    return found
