import subprocess
import sys

import foretrace.ir


def test_importing_the_room_loads_no_heavy_library():
    heavy = {"networkx", "google.protobuf", "torch", "onnx", "pyarrow", "numba", "pydantic", "yaml"}
    code = f"import sys, foretrace.ir; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_import_time_is_printed(capsys):
    code = "import time, numpy; t = time.perf_counter(); import foretrace.ir; print(time.perf_counter() - t)"
    best = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    with capsys.disabled():
        print(f"\nimport foretrace.ir beyond numpy: {best * 1e3:.0f} ms")


def test_every_public_name_is_there():
    assert all(hasattr(foretrace.ir, name) for name in foretrace.ir.__all__)
    assert sorted(foretrace.ir.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) == foretrace.ir.__all__
