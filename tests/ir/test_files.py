import errno
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest

from foretrace.ir import ForetraceError, FormatError, read_file, write_atomically


def test_write_and_read_back(tmp_path):
    path = tmp_path / "a.graph"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two")
    assert read_file(path) == b"two"
    assert os.listdir(tmp_path) == ["a.graph"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o600)
    write_atomically(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_names_at_the_limit_of_the_file_system(tmp_path):
    write_atomically(tmp_path / ("n" * 255), b"x")
    write_atomically(tmp_path / ("界" * 85), b"x")
    with pytest.raises(ForetraceError, match=r"cannot write .*File name too long"):
        write_atomically(tmp_path / ("n" * 256), b"x")
    assert len(os.listdir(tmp_path)) == 2


def refused(path, message, folder):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder) if (folder / name).is_file()}
    with pytest.raises(ForetraceError, match=message):
        write_atomically(path, b"data" * 100_000)
    assert before == {n: (folder / n).read_bytes() for n in os.listdir(folder) if (folder / n).is_file()}


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("there", [False, True])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call, there):
    target = tmp_path / "a.graph"
    if there:
        target.write_bytes(b"old")
    elif call == "chmod":
        pytest.skip("only the mode of an older file is kept")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    refused(target, r"cannot write .*a\.graph: No space left on device", tmp_path)
    assert os.listdir(tmp_path) == ["a.graph"] * there


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_a_real_limit_on_file_size(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from foretrace.ir import ForetraceError, write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically(sys.argv[1], b'x' * 100_000)\n"
        "except ForetraceError as e:\n    print(e)\n"
    )
    target = tmp_path / "a.graph"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {target}: File too large\n"
    assert os.listdir(tmp_path) == ["a.graph"]
    assert target.read_bytes() == b"old"


def test_targets_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "gone" / "a.graph", r"cannot write .*a\.graph: the folder .*gone does not exist", tmp_path)
    refused(tmp_path / "file" / "a.graph", "cannot write .*: the folder .*file does not exist", tmp_path)
    refused(tmp_path, "cannot write .*: it is a folder, expected the name of a file", tmp_path)
    refused("", "cannot write", tmp_path)
    refused("a\0b", "cannot write", tmp_path)


def test_read_only_files_and_folders_are_respected(tmp_path, monkeypatch):
    """As root nothing is read-only, so the two answers of the system are played."""
    target = tmp_path / "a.graph"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(target, r"cannot write .*a\.graph: it is read-only", tmp_path)
    monkeypatch.undo()

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(ForetraceError, match=r"cannot write .*b\.graph: Permission denied"):
        write_atomically(tmp_path / "b.graph", b"x")
    assert os.listdir(tmp_path) == ["a.graph"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_what_is_no_file_is_written_to_not_replaced(tmp_path):
    write_atomically("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"through")
    reader.join(10)
    assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_read_within_bounds(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100) == b"x" * 100
    with pytest.raises(FormatError, match=r"a: 100 bytes is more than the 99 that are read"):
        read_file(path, 99)
    with pytest.raises(FormatError, match=r"/dev/zero: \d+ bytes is more than the 5000000 that are read"):
        read_file("/dev/zero", 5_000_000)
    with pytest.raises(FormatError, match=r"cannot read .*gone: No such file or directory"):
        read_file(tmp_path / "gone")
    path.write_bytes(b"")
    assert read_file(path) == b""


def test_reading_an_empty_file_takes_no_memory(tmp_path):
    (tmp_path / "a").touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_file(tmp_path / "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
