"""Plug-ins: what real kernels do as one operator stays one operator in the Graph.

A plug-in is a module with two names: ``install(root)`` gives a context in which calls of the kernel become one custom
operator with shapes only, and ``OPS`` says what that operator is (`OpSpec`). To add one, write the file and name it in
`PLUGINS`; docs/plugins.md walks through it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import torch

from . import attention, dropout, experts, latent, scans
from .base import OpSpec

PLUGINS: tuple[ModuleType, ...] = (attention, dropout, experts, latent, scans)
OPS: dict[str, OpSpec] = {name: spec for plugin in PLUGINS for name, spec in plugin.OPS.items()}
"""Schema name of every custom operator (``foretrace::attention``) → what it is; their backwards are among them."""
OPS |= {f"{name}_backward": spec.of_backward() for name, spec in OPS.items() if spec.backward}


@contextmanager
def installed(root: torch.nn.Module) -> Iterator[None]:
    """Every plug-in installed for *root* while the context is open."""
    with ExitStack() as stack:
        for plugin in PLUGINS:
            stack.enter_context(plugin.install(root))
        yield
