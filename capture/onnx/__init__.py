"""ONNX in: an ``.onnx`` file → the same Graph and operator kinds, its own symbolic sizes left open.

`reader` takes the file in without its weights · `values` is what is known of one value · `scope` runs a graph node by
node on sizes alone, `call` is one node, `record` collects the ops · `fold` works out the values that shapes are made
of, with open sizes in them, `bounds` compares such sizes · `shapes`, `windows` and `geometry` give the sizes of
results, `gaps` asks onnx for those we have no rule for, `operators` says what each operator is, `classical` those of
``ai.onnx.ml`` · `control` does If, Loop, Scan, functions and sequences · `build` assembles the Graph. Nothing is
computed on tensors and no weight is read. Importing this room imports onnx, not torch.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as e:
    from foretrace.ir import ForetraceError

    raise ForetraceError(f"capturing an ONNX file needs the onnx package ({e}): pip install 'foretrace[onnx]'") from e

from .build import capture_onnx

__all__ = ["capture_onnx"]
