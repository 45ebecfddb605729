"""Small Nsight Systems exports of several schema versions, for tests."""

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PID = 4242
PROCESS = (PID << 24) | (1 << 48)
THREAD = PROCESS | 77
Rows = Iterable[Mapping[str, Any]]


def tid(number: int, pid: int = PID) -> int:
    return (pid << 24) | (1 << 48) | number


class Export:
    """Collects rows; `save` writes a table for each kind of row, with the columns that its rows have."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.texts: dict[str, int] = {}

    def text(self, value: str) -> int:
        return self.texts.setdefault(value, len(self.texts) + 1)

    def add(self, table: str, **row: Any) -> None:
        self.tables.setdefault(table, []).append(row)

    def kernel(self, name: str, start: int, end: int, correlation: int, stream: int = 7, **more: Any) -> None:
        named = {"demangledName": self.text(name), "shortName": self.text(name.split("<")[0])}
        row = {"deviceId": 0, "contextId": 1, "streamId": stream, "globalPid": PROCESS, **named, **more}
        self.add("CUPTI_ACTIVITY_KIND_KERNEL", start=start, end=end, correlationId=correlation, **row)

    def call(self, name: str, start: int, end: int, correlation: int, thread: int = THREAD) -> None:
        row = {"eventClass": 0, "globalTid": thread, "nameId": self.text(name), "returnValue": 0}
        self.add("CUPTI_ACTIVITY_KIND_RUNTIME", start=start, end=end, correlationId=correlation, **row)

    def range(
        self, text: str, start: int, end: int | None, thread: int = THREAD, by_id: bool = False, **more: Any
    ) -> None:
        said = {"text": None, "textId": self.text(text)} if by_id else {"text": text, "textId": None}
        self.add("NVTX_EVENTS", **{"start": start, "end": end, "eventType": 59, "globalTid": thread, **said, **more})

    def drop(self, table: str, *columns: str) -> None:
        self.tables[table] = [{c: v for c, v in row.items() if c not in columns} for row in self.tables[table]]

    def save(self, path: Path) -> Path:
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        rows = dict(self.tables)
        if self.texts:
            rows["StringIds"] = [{"id": i, "value": v} for v, i in self.texts.items()]
        for table, values in rows.items():
            columns = list(dict.fromkeys(c for row in values for c in row))
            types = ", ".join(f'"{c}" {"TEXT" if c in ("text", "value", "name") else "INTEGER"}' for c in columns)
            connection.execute(f'CREATE TABLE "{table}" ({types})')
            marks = ", ".join("?" * len(columns))
            connection.executemany(
                f'INSERT INTO "{table}" VALUES ({marks})', [[row.get(c) for c in columns] for row in values]
            )
        connection.commit()
        connection.close()
        return path


def step(by_id: bool = False, ranges: bool = True) -> Export:
    """A forward pass of two modules under emit_nvtx, and one backward on another thread."""
    made = Export()
    made.add("TARGET_INFO_GPU", id=0, name="NVIDIA H200", totalMemory=150_000_000_000, smCount=132, cuDevice=0)
    if ranges:
        for text, start, end in (
            ("phase:forward", 1000, 1900),
            ("module:net", 1010, 1800),
            ("module:net.fc", 1020, 1400),
            ("aten::linear, seq = 12, op_id = 5, sizes = [[4, 8], [16, 8], [16]]", 1030, 1390),
            ("aten::addmm, op_id = 6, sizes = [[16], [4, 8], [8, 16], [], []], input_op_ids = [(5,0)]", 1050, 1300),
            ("aten::relu, seq = 13, op_id = 7, sizes = [[4, 16]]", 1500, 1600),
            ("phase:backward", 2000, 2900),
        ):
            made.range(text, start, end, by_id=by_id)
        made.range("autograd::engine::evaluate_function: AddmmBackward0, seq = 12", 2100, 2500, tid(78), by_id=by_id)
        made.range("aten::mm, op_id = 9, sizes = [[16, 4], [4, 8]]", 2150, 2450, tid(78), by_id=by_id)
    made.call("cudaLaunchKernel_v7000", 1100, 1150, 101)
    made.call("cuLaunchKernel", 1200, 1250, 102)
    made.call("cudaLaunchKernel_v7000", 1550, 1590, 103)
    made.call("cudaMemcpyAsync_v3020", 1850, 1880, 104)
    made.call("cudaLaunchKernel_v7000", 2200, 2250, 105, tid(78))
    made.kernel("void gemm<float, 4>(Params)", 1300, 1700, 101)
    made.kernel("bias", 1700, 1750, 102)
    made.kernel("relu", 1750, 1800, 103)
    made.kernel("gemm_bw", 2400, 2800, 105, stream=8)
    made.add(
        "CUPTI_ACTIVITY_KIND_MEMCPY",
        start=1900,
        end=1950,
        deviceId=0,
        contextId=1,
        streamId=7,
        correlationId=104,
        globalPid=PROCESS,
        bytes=4096,
        copyKind=1,
        srcKind=1,
        dstKind=2,
    )
    return made
