"""Files written whole or not at all, and read within bounds."""

import os
import tempfile
from pathlib import Path

from .errors import ForetraceError, FormatError

MAX_FILE_BYTES = 4 << 30


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write *data* to *path* through a temporary file beside it; nothing partial is left behind on any failure.

    Raises `ForetraceError` naming the path and the cause (a full disk, a missing folder, no permission).
    """
    target = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as e:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ForetraceError(f"cannot write {target}: {e.strerror or e}") from e
    except BaseException:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_file(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of *path*. Raises `FormatError` where it is missing, unreadable or larger than *limit*."""
    source = Path(path)
    try:
        with source.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > limit:
                raise FormatError(f"{source}: {size} bytes is more than the {limit} that are read")
            return f.read(limit)
    except OSError as e:
        raise FormatError(f"cannot read {source}: {e.strerror or e}") from e
