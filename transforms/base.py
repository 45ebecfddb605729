"""The pass protocol, and the runner that verifies between passes."""

from collections.abc import Sequence
from typing import Protocol

from foretrace.ir import ForetraceError, Graph, GraphError, verify


class Pass(Protocol):
    """A transform: a frozen dataclass whose fields are its options.

    `run` returns a new graph, or the same object where there is nothing to change; it never changes its input.
    """

    @property
    def name(self) -> str:
        """What the command line and error messages call it."""
        ...

    def run(self, graph: Graph) -> Graph:
        """The transformed graph."""
        ...


def apply(passes: Sequence[Pass], graph: Graph) -> Graph:
    """*graph* after all *passes* in order, verified after each that changed it.

    Raises `GraphError` that names the pass that failed and those before it.
    """
    for i, step in enumerate(passes):
        try:
            after = step.run(graph)
            if after is not graph:
                verify(after)
        except ForetraceError as e:
            before = ", ".join(p.name for p in passes[:i]) or "no other"
            raise GraphError(f"pass {step.name} (after {before}): {e}") from e
        graph = after
    return graph
