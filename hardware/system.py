"""A system: accelerators in nodes, a host in each node, and the links between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, get_args

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from .document import dump
from .quantity import format_quantity
from .schema import Accelerator, Count, Described, Host, Link, Links, Part, Unit, complaint
from .topology import unreached


@dataclass(frozen=True)
class Node:
    """The accelerators of one node and the tiers between them (`Links.tiers`, less scale-out)."""

    accelerators: int
    tiers: dict[str, Link]

    @property
    def fabric(self) -> Link | None:
        """The nearest tier that joins every accelerator of the node: scale-up, else PCIe."""
        return self.tiers.get("scale-up", self.tiers.get("pcie"))


class Row(NamedTuple):
    """One line of `System.describe`: dotted field, value as people write it, meaning with unit, source."""

    field: str
    value: str
    meaning: str
    source: str


class System(Described):
    """What a model is replayed on: `count` accelerators in nodes of `node_size`, and a host per node."""

    accelerator: Accelerator = Field(description="the accelerator, all of one sort")
    count: Count = Field(1, description="accelerators in all")
    node_size: Count = Field(1, description="accelerators that one node can hold")
    host: Host = Field(description="the computer of each node")
    network: Links = Field(description="link tiers, seen from one accelerator")

    @property
    def nodes(self) -> int:
        """How many nodes the accelerators fill."""
        return -(-self.count // self.node_size)

    @property
    def node(self) -> Node:
        """One node: its accelerators and the tiers between them."""
        tiers = self.network.tiers()
        tiers.pop("scale-out", None)
        return Node(min(self.count, self.node_size), tiers)

    def describe(self) -> list[Row]:
        """Every field with its value in human units, its meaning and its source, in schema order.

        The accelerator's own `links` are left out: `network` is what a replay uses.
        """
        return [row for row in _rows(self, "", self) if not row.field.startswith("accelerator.links.")]

    def to_yaml(self) -> str:
        """The whole system as YAML that `check_file` reads back to an equal system."""
        return dump(_plain(self))

    @model_validator(mode="after")
    def _holds_together(self) -> "System":
        if self.count <= self.node_size:
            if self.count > 1 and self.node.fabric is None:
                raise complaint(f"{self.count}, but no link joins them: network.scale_up or network.pcie", "count")
            _fits(self.network.scale_up, "scale_up", self.node_size, "accelerators of a node (node_size)")
            return self
        if self.count % self.node_size:
            raise complaint(f"{self.count} does not fill whole nodes of {self.node_size} (node_size)", "count")
        if self.network.scale_out is None:
            expected = 'expected network: {scale_out: {bandwidth: "400 Gb/s"}} or the like'
            raise complaint(f"{self.count} is more than one node of {self.node_size} (node_size): {expected}", "count")
        _fits(self.network.scale_up, "scale_up", self.node_size, "accelerators of a node (node_size)")
        _fits(self.network.scale_out, "scale_out", self.nodes, "nodes (count / node_size)")
        return self


def _fits(link: Link | None, tier: str, places: int, what: str) -> None:
    """A torus has as many places as there are *places*; listed links join all of those, and no other."""
    if link is None:
        return
    if link.dims is not None and prod(link.dims) != places:
        shape = " x ".join(map(str, link.dims))
        raise complaint(f"{shape} is {prod(link.dims)}, but there are {places} {what}", "network", tier, "dims")
    for a, b, _ in link.links or ():
        if max(a, b) >= places or a == b:
            said = f"[{a}, {b}]: expected two of the {places} {what}, counted from 0"
            raise complaint(said, "network", tier, "links")
    if link.links is not None and (alone := unreached(places, link.links)) is not None:
        example = f'[0, {alone}, "{format_quantity(link.bandwidth, "bandwidth")}"]'
        said = f"not connected: no path from 0 to {alone} ({what}): add a link that leads there, e.g. {example}"
        raise complaint(said, "network", tier, "links")


_DETAILS = frozenset({"dims", "oversubscription", "nics_per_node", "group_size", "links"})
"""Fields of a `Link` that are shown only where they are set."""


def unit_of(field: FieldInfo) -> str | None:
    """The dimension of a quantity field (also inside a dict or an optional); None for other fields."""

    def search(annotation: Any) -> Iterator[str]:
        for argument in get_args(annotation):
            if isinstance(argument, Unit):
                yield argument.dimension
            yield from search(argument)

    direct = (m.dimension for m in field.metadata if isinstance(m, Unit))
    return next(direct, None) or next(search(field.annotation), None)


def _text(value: Any, unit: str | None, digits: int | None = 4) -> Any:
    if unit is not None and isinstance(value, float):
        return format_quantity(value, unit, digits=digits)
    if isinstance(value, dict):
        return {key: _text(inner, unit, digits) for key, inner in value.items()}
    return [_text(inner, unit, digits) for inner in value] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)


def _rows(part: Part, prefix: str, owner: Described) -> Iterator[Row]:
    """The rows of *part*; *owner* is the nearest part around it that keeps sources, at *prefix* there."""
    for name, field in type(part).model_fields.items():
        key, value = str(field.alias), getattr(part, name)
        path = f"{prefix}{key}"
        if isinstance(part, Link) and name in _DETAILS and value == field.default:
            continue
        if isinstance(value, Described):
            yield from (row._replace(field=f"{path}.{row.field}") for row in _rows(value, "", value))
        elif isinstance(value, Part):
            yield from _rows(value, f"{path}.", owner)
        elif isinstance(value, dict) and name != "sources":
            shown = _text(value, unit_of(field))
            for inner, text in shown.items():
                yield Row(f"{path}.{inner}", text, field.description or "", owner.source(f"{path}.{inner}") or "")
        elif name not in ("sources", "lineage", "aliases"):
            yield Row(path, _shown(_text(value, unit_of(field))), field.description or "", owner.source(path) or "")


def _plain(part: Part) -> dict[str, Any]:
    """*part* as YAML data: quantities as exact text, empty tables left out, None as null."""
    data: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if value in ((), {}) or (isinstance(part, Link) and name in _DETAILS and value == field.default):
            continue
        text = _plain(value) if isinstance(value, Part) else _text(value, unit_of(field), None)
        data[str(field.alias)] = text
    return data
