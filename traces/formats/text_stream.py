"""A text file from anyone, unpacked and decoded a piece at a time, within bounds."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from foretrace.ir import FormatError

from .unpack import Source


class CutOffError(FormatError):
    """A file that ends early; what came before may be sound."""


def read_text(path: Path) -> Iterator[str]:
    """The text of *path*, gunzipped where it is gzip, in pieces; bytes that are no UTF-8 become U+FFFD.

    Raises FormatError, naming the file, where it cannot be opened, is UTF-16 or unpacks to too much, and CutOffError
    where gzip data ends early or is corrupt.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    try:
        with path.open("rb") as file:
            source = Source(file, str(path))
            if source.start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise FormatError(f"{path}: UTF-16 text; save it as UTF-8")
            for piece in source:
                yield decoder.decode(piece)
            yield decoder.decode(b"", final=True)
            if source.damage:
                raise CutOffError(f"{path}: {source.damage}; copy or record it again")
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
