"""The parallel plans that a model ships, as metadata of its graph: sharding needs no torch to read them."""

import json
from typing import Any


def shipped_plans(root: Any) -> dict[str, str]:
    """``tp_plan`` and ``ep_plan`` (module pattern → transformers' style) of *root* as JSON; only those that exist."""
    found = {}
    for name in ("tp_plan", "ep_plan"):
        plan = getattr(root, f"_{name}", None)
        if isinstance(plan, dict) and plan and all(isinstance(v, str) for v in plan.values()):
            found[name] = json.dumps(plan, sort_keys=True)
    return found
