"""Rows of 2-D convolutions over square images with square kernels."""

from typing import Final

import numpy as np

from foretrace.ir import OpKind
from foretrace.replay.columns import Floats, Mask

from .columns import Block, Sizes
from .formats import compute_codes, operand_bytes
from .tables import Table

SIZES: Final = ("batch", "c_in", "c_out", "kernel", "image", "stride", "groups")
NATURALS: Final = ("padding",)
OPTIONAL: Final = ("stride", "groups", "padding")


def out_size(table: Table) -> Floats:
    """[n] the side of the result."""
    image, kernel = table.number("image"), table.number("kernel")
    stride, padding = table.number("stride", 1.0), table.number("padding", 0.0)
    return np.floor((image + 2 * padding - kernel) / stride) + 1


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows whose sizes make no convolution."""
    groups = table.number("groups", 1.0)
    uneven = (table.number("c_in") % groups != 0) | (table.number("c_out") % groups != 0)
    return [
        ("kernel is larger than the padded image", out_size(table) < 1),
        ("groups do not divide c_in and c_out", uneven),
    ]


def blocks(table: Table) -> list[Block]:
    """A convolution each row."""
    batch, c_in, c_out, kernel = (table.number(name) for name in ("batch", "c_in", "c_out", "kernel"))
    groups, element = table.number("groups", 1.0), operand_bytes(table.text("dtype"))
    k = c_in / groups * kernel**2
    out = batch * c_out * out_size(table) ** 2
    image = batch * c_in * table.number("image") ** 2
    attributes: dict[str, Sizes] = {
        "batch": batch,
        "out_channels": c_out,
        "in_channels": c_in,
        "groups": groups,
        "k": k,
        "bias": 0.0,
        "kernel_size": kernel,
        "out_pixels": out_size(table) ** 2,
        "stride": table.number("stride", 1.0),
    }
    return [
        Block(
            np.arange(table.rows),
            OpKind.CONVOLUTION,
            "aten.convolution.default",
            compute_codes(table.text("dtype")),
            attributes,
            (image + c_out * k) * element,
            out * element,
            matrix_flops=2 * out * k,
            length=table.number("image"),
        )
    ]
