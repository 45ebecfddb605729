"""Operators of ``ai.onnx.ml``, what scikit-learn and its like export: sizes, and for linear models their matmul.

Trees, support vectors and label tables walk data of their own: `OpKind.OTHER`, bytes only, reported as unmodelled.
What takes maps (DictVectorizer, CastMap) has no sizes at all and is refused where its input is declared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from onnx import TensorProto

from foretrace.ir import DTYPES, DimLike, OpKind, prod

from . import shapes as s
from .call import Call, Sized
from .values import Value, dtype_of

DOMAIN: Final = "ai.onnx.ml"
FLOAT, INT64 = DTYPES["float32"], DTYPES["int64"]
STRING = dtype_of(TensorProto.STRING, "")
_LABELS: Final = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


def _rows(call: Call) -> DimLike:
    x = call.value(0)
    return x.shape[0] if x.rank > 1 else 1


def _features(call: Call) -> DimLike:
    x = call.value(0)
    return x.shape[-1] if x.rank else 1


def _as_float(call: Call) -> list[Sized]:
    return [(call.value(0).shape, FLOAT)]


def _label_type(call: Call) -> Any:
    return STRING if call.attr("classlabels_strings", []) else INT64


def _classes(call: Call) -> int:
    return max((len(call.attr(name, [])) for name in _LABELS), default=0)


def _classified(call: Call) -> list[Sized]:
    """The label of each row and a score for each class."""
    if (classes := _classes(call)) == 0:
        raise call.fail("names no classes (classlabels_int64s or classlabels_strings)")
    rows = _rows(call)
    return [((rows,), _label_type(call)), ((rows, classes), FLOAT)][: len(call.node.output)]


def linear_scores(call: Call) -> Value:
    """The scores of a linear classifier whose caller wants only the label: computed all the same."""
    return Value((_rows(call), _classes(call)), FLOAT)


def _regressed(call: Call) -> list[Sized]:
    return [((_rows(call), call.attr("n_targets", call.attr("targets", 1))), FLOAT)]


def _one_hot(call: Call) -> list[Sized]:
    count = max(len(call.attr("cats_int64s", [])), len(call.attr("cats_strings", [])))
    return [((*call.value(0).shape, count), FLOAT)]


def _vectorized(call: Call) -> list[Sized]:
    return [((_rows(call), sum(call.attr("inputdimensions"))), FLOAT)]


def _extracted(call: Call) -> list[Sized]:
    x = call.value(0)
    return [((*x.shape[:-1], prod(call.value(1).shape)), x.dtype)]


def _looked_up(call: Call) -> list[Sized]:
    """LabelEncoder, CategoryMapper: a value for each key; of the older forms, a number for each string or back."""
    x = call.value(0)
    kinds = {"values_int64s": INT64, "values_floats": FLOAT, "values_strings": STRING}
    table = call.attr("values_tensor", None)
    named = next((t for n, t in kinds.items() if call.has(n)), STRING if x.dtype == INT64 else INT64)
    return [(x.shape, named if table is None else table.dtype)]


def linear_geometry(call: Call) -> dict[str, Any]:
    """A linear model is a matmul of the rows with its coefficients, which are an attribute."""
    n = _classes(call) or call.attr("targets", 1)
    return {"b": 1, "m": _rows(call), "n": n, "k": _features(call), "bias": bool(call.attr("intercepts", []))}


Entry = tuple[OpKind, Callable[[Call], list[Sized]], Callable[[Call], dict[str, Any]] | None, str]
TABLE: Final[tuple[Entry, ...]] = (
    (OpKind.ELEMENTWISE, _as_float, None, "Scaler Normalizer"),
    (OpKind.ELEMENTWISE, s.same, None, "Binarizer Imputer"),
    (OpKind.ELEMENTWISE, _one_hot, None, "OneHotEncoder"),
    (OpKind.COPY, _vectorized, None, "FeatureVectorizer"),
    (OpKind.GATHER_SCATTER, _extracted, None, "ArrayFeatureExtractor"),
    (OpKind.MATMUL, _classified, linear_geometry, "LinearClassifier"),
    (OpKind.MATMUL, _regressed, linear_geometry, "LinearRegressor"),
    (OpKind.OTHER, _classified, None, "TreeEnsembleClassifier SVMClassifier"),
    (OpKind.OTHER, _regressed, None, "TreeEnsembleRegressor TreeEnsemble SVMRegressor"),
    (OpKind.OTHER, _looked_up, None, "LabelEncoder CategoryMapper"),
    (OpKind.HOST, s.same, None, "ZipMap"),  # the caller gets a dictionary a row: made on the host
)
"""Kind, sizes, the matmul that it is, operators."""
