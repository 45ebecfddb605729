"""Bounded unpacking of what strangers compressed."""

import zlib

from foretrace.ir import FormatError

MAX_BYTES = 2 << 30  # of a file, and of what a gzip stream unpacks to
FREE_BYTES = 64 << 20  # unpacked size from which on the ratio is looked at
MAX_RATIO = 250  # traces compress 10 to 50 times; a bomb about 1000


def gunzip(data: bytes, label: str) -> bytes:
    """Unpack every member of a gzip file, within MAX_BYTES and, past FREE_BYTES, MAX_RATIO.

    Raises FormatError, naming *label*, for a cut-off or corrupt stream and for one that unpacks to too much.
    """
    limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * len(data)))
    parts: list[bytes] = []
    size, rest = 0, data
    try:
        while rest.startswith(b"\x1f\x8b"):
            stream = zlib.decompressobj(wbits=31)
            while not stream.eof:
                part = stream.decompress(rest, 1 << 24)
                rest = stream.unconsumed_tail
                size += len(part)
                if size > limit:
                    raise FormatError(f"{label}: gzip data unpacks to more than {limit >> 20} MiB; refused")
                if not part and not rest and not stream.eof:
                    raise FormatError(f"{label}: gzip data ends early: the file is cut off")
                parts.append(part)
            rest = stream.unused_data
    except zlib.error as error:
        raise FormatError(f"{label}: corrupt gzip data: {error}") from None
    return b"".join(parts)
