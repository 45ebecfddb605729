"""Turning pydantic's complaints into ours: ``FILE:LINE:COLUMN: field: expected ..., got ...``."""

from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from foretrace.ir.errors import nearest_names

from .document import Document, HardwareError, KeyPath
from .quantity import quoted

_SHOWN: Final = 5
_EXPECTED: Final = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "dict": "a mapping",
    "model": "a mapping",
    "list": "a list",
    "tuple": "a list",
}


def validation_error(error: ValidationError, document: Document, model: type[BaseModel]) -> HardwareError:
    """The first few of pydantic's complaints about *document*, one a line, each with its place."""
    found = sorted(_complaint_at(dict(item), document, model) for item in error.errors(include_url=False))
    lines = [line for _, line in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more")
    return HardwareError("\n".join(lines))


def _complaint_at(item: dict[str, Any], document: Document, model: type[BaseModel]) -> tuple[Any, str]:
    """One complaint as (its order, its line): what stands in the file first, what is missing last."""
    location: KeyPath = (*item["loc"], *item.get("ctx", {}).get("at", ()))
    known = location
    while known and known not in document.marks:
        known = known[:-1]
    mark = document.marks[known]
    order = (item["type"] == "missing", mark.file, mark.line, mark.column)
    return order, mark.below(*location[len(known) :]) + _complaint(item, location, model)


def _complaint(item: dict[str, Any], location: KeyPath, model: type[BaseModel]) -> str:
    sort, got, context = item["type"], item["input"], item.get("ctx", {})
    if sort == "missing":
        return f"missing: {_meaning(model, location)}"
    if sort == "extra_forbidden":
        keys = [*_keys(_model_at(model, location[:-1]))]
        near = nearest_names(str(location[-1]), keys, 1)
        return f"unknown key, did you mean {near[0]!r}?" if near else f"unknown key; known: {', '.join(keys)}"
    stem, _, ending = sort.rpartition("_")
    if stem in _EXPECTED and ending in ("type", "parsing"):
        return f"expected {_EXPECTED[stem]}, got {_shown(got)}"
    if sort in ("literal_error", "greater_than", "less_than_equal"):
        wanted = context.get("expected") or (
            f"more than {context['gt']}" if sort == "greater_than" else f"at most {context['le']}"
        )
        return f"expected {wanted}, got {_shown(got)}"
    if "error" in context or sort.startswith(("string_", "int_", "float_", "finite_", "model_")):
        return f"{item['msg']}, got {_shown(got)}"
    return str(item["msg"])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else quoted(value)


def _keys(model: type[BaseModel] | None) -> list[str]:
    """The keys that *model* takes in YAML."""
    return [str(field.alias) for field in model.model_fields.values()] if model else []


def _model_at(model: type[BaseModel], location: KeyPath) -> type[BaseModel] | None:
    """The model that checks the mapping at *location* inside *model*."""
    found: type[BaseModel] | None = model
    for step in location:
        fields = {f.alias: f.annotation for f in found.model_fields.values()} if found else {}
        kinds = (fields.get(str(step)), *get_args(fields.get(str(step))))
        found = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return found


def _meaning(model: type[BaseModel], location: KeyPath) -> str:
    owner = _model_at(model, location[:-1])
    fields = {f.alias: f.description for f in owner.model_fields.values()} if owner else {}
    return fields.get(str(location[-1])) or "a required key"
