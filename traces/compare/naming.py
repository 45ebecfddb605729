"""How operators and modules are called when many are shown as one."""

from collections.abc import Iterable


def fold_indices(module: str) -> str:
    """``h.3.mlp`` and ``h.7.mlp`` are both ``h.*.mlp``."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def short_name(name: str) -> str:
    """The name people know an operator by: ``aten.addmm.default`` is ``addmm``."""
    return name.removeprefix("aten.").removeprefix("aten::").removesuffix(".default")


def common_path(modules: Iterable[str]) -> str:
    """The module that holds all of *modules*, indices that differ folded: h.3.mlp and h.7.mlp.act give h.*.mlp."""
    paths = [m.split(".") for m in modules]
    common: list[str] = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1 and not all(w.isdigit() for w in words):
            break
        common.append(words[0] if len(set(words)) == 1 else "*")
    return ".".join(common)
