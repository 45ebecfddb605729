"""Files written whole or not at all, and read within bounds."""

import os
from pathlib import Path

from .errors import ForetraceError, FormatError

MAX_FILE_BYTES = 4 << 30


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write *data* to *path* through a temporary file beside it; nothing partial is left behind on any failure.

    Links are followed, and what is no file (``/dev/stdout``, a pipe) is written to as it is. Raises
    `ForetraceError` naming the path and the cause (a full disk, a missing folder, no permission).
    """
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise ForetraceError(f"cannot write {path}: it is a folder, expected the name of a file")
        if not target.parent.is_dir():
            raise ForetraceError(f"cannot write {path}: the folder {target.parent} does not exist")
        if not target.exists() or target.is_file():
            _replace(target, data)
        else:
            target.write_bytes(data)
    except (OSError, ValueError) as e:
        raise ForetraceError(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from e


def stage_file(target: Path, data: bytes) -> Path:
    """*data* in a temporary file beside *target*, to be moved there; raises `OSError`, and leaves nothing then."""
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(None, "it is read-only")
    temporary = target.parent / f".{target.name[:40]}.{os.urandom(4).hex()}.partial"
    try:
        with temporary.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _replace(target: Path, data: bytes) -> None:
    temporary = stage_file(target, data)
    try:
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_file(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of *path*. Raises `FormatError` where it is missing, unreadable or larger than *limit*."""
    data = bytearray()
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size  # 0 where it is no file: a pipe, /dev/zero
            while size <= limit and len(data) <= limit and (chunk := f.read(1 << 20)):
                data += chunk
    except (OSError, ValueError) as e:
        raise FormatError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if max(size, len(data)) > limit:
        raise FormatError(f"{path}: {max(size, len(data))} bytes is more than the {limit} that are read")
    return bytes(data)
