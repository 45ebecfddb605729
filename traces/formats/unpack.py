"""Bounded unpacking of what strangers compressed."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from foretrace.ir import FormatError

MAX_BYTES = 2 << 30  # of what is held in one piece
FREE_BYTES = 64 << 20  # unpacked size from which on the ratio is looked at
MAX_RATIO = 250  # traces compress 10 to 50 times; a bomb about 1000
PIECE = 1 << 18  # what is unpacked and parsed at a time: a piece and all that is made of it stay in the cache
GZIP = b"\x1f\x8b"

Progress = Callable[[float], None]


class Source:
    """The bytes of an open *file*, gzipped or not, in pieces of at most `PIECE`: `start` without taking it, or all.

    *label* names the file in errors; *progress* is told the fraction that was read. `damage` says why a gzip stream
    ended before its end, "" where it did not. Raises FormatError where the file cannot be read, and for gzip data
    that unpacks, past `FREE_BYTES`, to more than `MAX_RATIO` times its size.
    """

    def __init__(self, file: BinaryIO, label: str, progress: Progress | None = None) -> None:
        self.label = label
        self.damage = ""
        self._file, self._progress = file, progress
        self._size = self._taken = 0
        with suppress(OSError):  # io.UnsupportedOperation: bytes in memory
            self._size = os.fstat(file.fileno()).st_size
        first = self._take()
        self._pieces = self._gunzip(first) if first.startswith(GZIP) else self._plain(first)
        self.start = next(self._pieces, b"")
        self._fresh = True

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    def read(self) -> bytes:
        """The next piece, empty at the end."""
        if self._fresh:
            self._fresh = False
            return self.start
        return next(self._pieces, b"")

    def read_all(self) -> bytes:
        """All of it in one; FormatError where that is more than `MAX_BYTES`, or the gzip stream is damaged."""
        parts: list[bytes] = []
        size = 0
        for piece in self:
            parts.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise FormatError(f"{self.label}: more than the {MAX_BYTES >> 20} MiB that are read of this format")
        if self.damage:
            raise FormatError(f"{self.label}: {self.damage}")
        return b"".join(parts)

    def _take(self) -> bytes:
        try:
            data = self._file.read(PIECE)
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read {self.label}: {getattr(error, 'strerror', None) or error}") from error
        self._taken += len(data)
        if self._progress is not None and self._size:
            self._progress(min(self._taken / self._size, 1.0))
        return data

    def _plain(self, first: bytes) -> Iterator[bytes]:
        while first:
            yield first
            first = self._take()

    def _gunzip(self, rest: bytes) -> Iterator[bytes]:
        """What every member holds; what follows the last member and is none is padding."""
        unpacked = 0
        while rest.startswith(GZIP):
            stream = zlib.decompressobj(wbits=31)
            while not stream.eof:
                try:
                    piece = stream.decompress(rest, PIECE)
                except zlib.error as error:
                    self.damage = f"corrupt gzip data: {error}"
                    return
                unpacked += len(piece)
                if unpacked > (limit := max(FREE_BYTES, MAX_RATIO * max(self._size, self._taken))):
                    raise FormatError(f"{self.label}: gzip data unpacks to more than {limit >> 20} MiB; refused")
                if piece:
                    yield piece
                rest = stream.unconsumed_tail or (b"" if stream.eof else self._take())
                if not rest and not piece and not stream.eof:
                    self.damage = "gzip data ends early: the file is cut off"
                    return
            rest = stream.unused_data or self._take()
