"""Finding, merging and checking hardware descriptions.

A YAML file describes one of three things:

- an **accelerator** (`schema.Accelerator`): the usual file; alone it is a system of one with the
  default host;
- a **system** (it has the key ``accelerator``: a name, a path or the accelerator's own keys), with
  ``count``, ``node_size``, ``host`` (a name, a path, or keys: laid over the default host unless they say
  ``kind: host``) and
  ``network`` (keys laid over the accelerator's ``links``);
- a **host** (``kind: host``).

Any of them may say ``extends: NAME or other.yaml``: its keys are then laid over that description's,
mapping by mapping; ``null`` takes a figure away. A hypothetical chip is three lines::

    extends: h100-sxm
    memory: {bandwidth: 6.7 TB/s}
    name: h100-twice-the-memory
"""

import os
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from foretrace.ir.dtype import parse_dtype
from foretrace.ir.errors import UnknownNameError

from .checking import validation_error
from .document import Document, HardwareError, Mark, read_document
from .quantity import quoted
from .schema import Accelerator
from .system import System

LIBRARY: Final = Path(__file__).parent / "library"
THIS_MACHINE: Final = "this-machine"
DEFAULT_HOST: Final = "host-x86-server"
CPU_HOST: Final = "host-cpu"
_DTYPE_TABLES: Final = ("matrix", "vector", "energy_per_flop", "emulated_with")
_OWN_KEYS: Final = ("name", "title", "aliases")  # never inherited
_AGES: Final = (
    *("gcn5", "cdna1", "cdna2", "cdna3", "cdna4"),
    *("maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell", "blackwell-geforce"),
)  # where the alphabet is not the order
_SYSTEM_KEYS: Final = ("count", "host", "network")


class SystemSummary(NamedTuple):
    """One line of `foretrace hardware list`; figures are None where not known before measuring."""

    name: str
    aliases: tuple[str, ...]
    vendor: str
    kind: str
    memory_bytes: float | None
    bandwidth: float | None
    peak_flops: float | None
    peak_dtype: str | None
    generation: str | None = None


def load_system(spec: str | os.PathLike[str]) -> System:
    """The system called *spec*: a shipped name or alias, ``NAME:COUNT``, or a YAML file's path.

    Raises `UnknownNameError` (with the nearest names), `HardwareError` or `FormatError`.
    """
    if not isinstance(spec, str):
        return check_file(spec)
    text = spec
    reference, count = _split_count(text)
    document = _resolve(reference, None, ())
    alone = "accelerator" not in document.data
    system = _build(document, count if not alone else None)
    if count is None or not alone:
        return system
    size = system.node_size
    if count > size and system.network.scale_out is None:
        raise HardwareError(
            f"{text}: expected a count from 1 to {size} (one node, its `node_size`), got {count}; a larger system is "
            'a YAML file with `accelerator`, `count` and `network: {scale_out: {bandwidth: "400 Gb/s"}}` or the like'
        )
    if count > size and count % size:
        raise HardwareError(
            f"{text}: expected a count from 1 to {size} (one node, its `node_size`) or whole nodes, e.g. "
            f"{count + size - count % size}, got {count}"
        )
    return _build(document, count)


def check_file(path: str | os.PathLike[str]) -> System:
    """The system that the YAML file at *path* describes, fully checked. Raises as `load_system`."""
    return _build(_read(Path(path), ()))


def list_systems() -> list[SystemSummary]:
    """One summary for each shipped description, by vendor and generation; `this-machine` (not measured) last."""
    found = [_summary(load_system(name).accelerator) for name in library_names()]
    found.append(SystemSummary(THIS_MACHINE, (), "", "cpu", None, None, None, None))
    return sorted(found, key=_order)


def library_names() -> list[str]:
    """The names of the accelerators that ship, in order."""
    return sorted(p.stem for p in LIBRARY.glob("*.yaml") if not p.stem.startswith("host-"))


def _summary(chip: Accelerator) -> SystemSummary:
    peaks = chip.compute.matrix or chip.compute.vector
    dtype = next((d for d in ("bfloat16", "float16", "float32") if d in peaks), next(iter(peaks)))
    return SystemSummary(
        chip.name,
        chip.aliases,
        chip.vendor,
        chip.kind,
        chip.memory.capacity_bytes,
        chip.memory.bandwidth,
        peaks[dtype],
        dtype,
        chip.generation,
    )


def _order(summary: SystemSummary) -> tuple[bool, str, int, str, str]:
    """By vendor, then generation (the oldest first), then name; what has no vendor last."""
    age = _AGES.index(summary.generation) if summary.generation in _AGES else len(_AGES)
    name = re.sub(r"\d+", lambda number: number[0].zfill(6), summary.name)  # a2 before a10
    return not summary.vendor, summary.vendor.lower(), age, summary.generation or "", name


# --- from a reference to one merged document ------------------------------------------------------


def _split_count(text: str) -> tuple[str, int | None]:
    """``NAME:COUNT`` apart; a colon inside a path (``C:\\chips``) is not a count."""
    match = re.fullmatch(r"(.+):([^:/\\]*)", text, re.DOTALL)
    if match is None:
        return text, None
    if not re.fullmatch(r"0*[1-9][0-9]{0,6}", match[2], re.ASCII):
        raise HardwareError(f'{quoted(text)}: expected NAME:COUNT such as "h100-sxm:8", got {quoted(match[2])}')
    return match[1], int(match[2])


def _is_path(reference: str) -> bool:
    return reference.lower().endswith((".yaml", ".yml")) or "/" in reference or os.sep in reference


def _resolve(reference: str, asked: Mark | None, chain: tuple[str, ...]) -> Document:
    """The merged document that *reference* (a name or a path, written at *asked*) stands for."""
    if _is_path(reference):
        folder = Path(asked.file).parent if asked else Path()
        return _read(folder / reference, chain, asked)
    name = _normal(reference)
    if name == THIS_MACHINE:
        from .this_machine import describe_this_machine

        return describe_this_machine()
    path = LIBRARY / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9.-]+", name) or not path.is_file():
        aliases = _aliases()
        if name not in aliases:
            known = [THIS_MACHINE, *library_names(), *aliases]
            error = UnknownNameError("hardware", reference[:80], known, "or a path ending in .yaml")
            error.args = (f"{asked}: {error}",) if asked else error.args
            raise error
        path = LIBRARY / f"{aliases[name]}.yaml"
    return _read(path, chain, asked)


def _normal(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _aliases() -> dict[str, str]:
    """Every alias of the library by its file's stem: a scan of the `aliases: [...]` lines, no parsing."""
    found: dict[str, str] = {}
    for path in sorted(LIBRARY.glob("*.yaml")):
        if line := re.search(r"^aliases: \[(.*)\]$", path.read_text("utf-8"), re.MULTILINE):
            found |= {_normal(alias.strip(" \"'")): path.stem for alias in line[1].split(",")}
    return found


def _read(path: Path, chain: tuple[str, ...], asked: Mark | None = None) -> Document:
    """The document of one file, merged over all that it extends."""
    shown = str(path)
    key = os.path.abspath(shown)
    if key in chain:
        names = " -> ".join(Path(step).name for step in (*chain[chain.index(key) :], key))
        message = f"extends itself: {names}"
        raise asked.error(message) if asked else HardwareError(f"{shown}: {message}")
    document = _merged(read_document(path), (*chain, key))
    document.data.setdefault("name", path.stem)
    return document


def _merged(document: Document, chain: tuple[str, ...]) -> Document:
    """*document* with its dtype keys in canonical form, laid over what it extends."""
    document = _canonical(document)
    base_name = document.data.get("extends")
    if base_name is None:
        return document.without("extends")
    mark = document.mark(("extends",))
    if not isinstance(base_name, str):
        raise mark.error(f"expected a name or a path, got {quoted(base_name)}")
    base = _resolve(base_name, mark, chain)
    chip = document.data.get("accelerator")
    if isinstance(chip, dict) and isinstance(base.data.get("accelerator"), str):
        chip.setdefault("extends", base.data["accelerator"])
        document.marks.setdefault(("accelerator", "extends"), base.mark(("accelerator",)))
    return _derived(document.without("extends"), base)


def _accelerator_of(document: Document, chain: tuple[str, ...] = ()) -> Document:
    """The accelerator that *document* describes, taken out of its system where it is one."""
    if "accelerator" not in document.data:
        return document
    value, mark = document.data["accelerator"], document.mark(("accelerator",))
    chain = (*chain, os.path.abspath(mark.file))
    if isinstance(value, str):
        return _accelerator_of(_resolve(value, mark, chain), chain)
    part = _mapping(document, "accelerator")
    part.data.setdefault("name", document.data.get("name"))
    return _merged(part, chain)


def _derived(child: Document, base: Document) -> Document:
    """*child* laid over *base*: own name and sources for what it changes, and *base* in its lineage."""
    own = dict(_mapping(child, "sources").data)
    changed = child.without("sources", "lineage", "kind", *_OWN_KEYS)
    for path in changed.leaves():
        dotted = ".".join(map(str, path))
        prefixes = (dotted.rsplit(".", n)[0] for n in range(len(path)))
        own[dotted] = next((own[p] for p in prefixes if p in own), f"set in {changed.mark(path)}")
    older = base.data.get("lineage")
    lineage = [base.data.get("name"), *(older if isinstance(older, list) else [])]
    if Path(child.mark(()).file).parent == LIBRARY:
        lineage = []  # a sibling that ships is a chip that exists, not a hypothetical one
    merged = child.over(base.without(*_OWN_KEYS))
    sources = _mapping(base, "sources").data | own
    merged.data |= {"lineage": lineage, "sources": sources}
    return merged


def _canonical(document: Document) -> Document:
    """dtype keys of the compute tables under their canonical names (`fp8` -> `float8_e4m3`)."""
    tables = [p for p in document.marks if p[-2:-1] == ("compute",) and p[-1] in _DTYPE_TABLES]
    for path in tables:
        peaks: Any = document.data
        for step in path:
            peaks = peaks[step]
        for written in list(peaks) if isinstance(peaks, dict) else ():
            mark = document.marks[*path, written]
            try:
                key = parse_dtype(written).name
            except UnknownNameError as error:
                raise mark.error(str(error)) from None
            if key != written and key in peaks:
                raise mark.error(f"written twice: {key!r} is the same dtype")
            peaks[key] = peaks.pop(written)
            document.marks[*path, key] = document.marks.pop((*path, written))
    return document


def _mapping(document: Document, key: str) -> Document:
    """The mapping under *key*, empty where there is none."""
    value = document.data.get(key)
    if value is None:
        return Document({}, {(): document.mark((key,))})
    if not isinstance(value, dict):
        raise document.mark((key,)).error(f"expected a mapping, got {quoted(value)}")
    part = document.part(key)
    part.marks.setdefault((), document.mark((key,)))
    return part


# --- from a document to a system ------------------------------------------------------------------


def _build(document: Document, count: int | None = None) -> System:
    """The checked system that *document* describes, with *count* accelerators where given."""
    whole = _assembled(document)
    if count is not None:
        whole.data["count"] = count
    try:
        return System.model_validate(whole.data)
    except ValidationError as error:
        raise validation_error(error, whole, System) from None


def _assembled(document: Document) -> Document:
    """Chip, host and network of *document* joined into what `System` takes."""
    if document.data.get("kind") == "host":
        raise document.mark(("kind",)).error("describes a host: expected an accelerator or a system")
    chip = _accelerator_of(document)
    if chip is document:
        for key in _SYSTEM_KEYS:
            if key in document.data:
                hint = "a key of a system: name the chip with `accelerator: NAME` (in place of `extends`)"
                raise document.mark((key,)).error(hint)
        whole = Document(
            {k: v for k, v in chip.data.items() if k in ("name", "title", "lineage")}, {(): document.mark(())}
        )
    else:
        whole = document.without("accelerator", "host", "network")
    whole.put("accelerator", chip)
    whole.data.setdefault("node_size", chip.data.get("node_size", 1))
    links = _mapping(chip, "links")
    network = _mapping(document, "network").over(links)
    whole.put("network", network)
    sources = _mapping(chip, "sources").data
    inherited = {f"network{k[5:]}": v for k, v in sources.items() if re.match(r"links\b", str(k))}
    whole.data["sources"] = inherited | _mapping(whole, "sources").data
    whole.put("host", _host(document, chip, network))
    return whole


def _host(document: Document, chip: Document, network: Document) -> Document:
    """The host that *document* names or describes, else the default one; a CPU is its own host."""
    value, mark = document.data.get("host"), document.mark(("host",))
    cpu = chip.data.get("kind") == "cpu"
    if isinstance(value, str):
        host = _resolve(value, mark, ())
    else:
        own = _mapping(document, "host")
        if own.data.get("kind") == "host" or "extends" in own.data:
            host = _merged(own, ())
        else:
            base = _own_host(chip, _resolve(CPU_HOST, None, ())) if cpu else _resolve(DEFAULT_HOST, None, ())
            host = _derived(own, base) if own.data else base
    host.data.setdefault("name", document.data.get("name"))
    if not cpu and "pcie" not in host.data and network.data.get("pcie") is not None:
        host.put("pcie", _mapping(network, "pcie"))
        host.data["sources"] = {"pcie": "the accelerator's own link"} | _mapping(host, "sources").data
    return host


def _own_host(chip: Document, default: Document) -> Document:
    """The host that a CPU accelerator is for itself: its cores, and the default's dispatch costs."""
    figures = {"cores": chip.data.get("cores"), "clock": chip.data.get("clock")}
    figures["memory_bandwidth"] = _mapping(chip, "memory").data.get("bandwidth")
    known = {key: value for key, value in figures.items() if value is not None}
    sources = _mapping(default, "sources").data | dict.fromkeys(known, "the accelerator itself")
    name = {"name": chip.data.get("name"), "title": chip.data.get("title")}
    return Document(default.data | known | name | {"sources": sources}, dict(default.marks))
