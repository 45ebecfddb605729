"""What we write for ui.perfetto.dev, parsed back by Perfetto's own messages."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.traces import Trace, save_trace
from foretrace.traces.formats.perfetto import encode_perfetto

perfetto_trace_pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


def parse(data: bytes) -> tuple[dict[int, Any], list[dict[str, Any]]]:
    """Tracks by uuid, and slices in order of their begin packets, each stack-matched with its end."""
    trace = perfetto_trace_pb2.Trace()
    trace.ParseFromString(data)
    tracks, slices, open_slices = {}, [], defaultdict(list)
    interned: dict[str, dict[int, str]] = defaultdict(dict)
    for packet in trace.packet:
        for field, values in packet.interned_data.ListFields():
            for value in values:
                text = value.str.decode() if field.name == "debug_annotation_string_values" else value.name
                interned[field.name][value.iid] = text
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        if packet.HasField("track_event"):
            event = packet.track_event
            stack = open_slices[event.track_uuid]
            if event.type == event.TYPE_SLICE_END:
                found = stack.pop()
                found["end"] = packet.timestamp
                continue
            args = {
                interned["debug_annotation_names"][a.name_iid]: interned["debug_annotation_string_values"][
                    a.string_value_iid
                ]
                if a.string_value_iid
                else a.int_value
                for a in event.debug_annotations
            }
            found = {
                "name": interned["event_names"][event.name_iid],
                "category": interned["event_categories"][event.category_iids[0]],
                "track": event.track_uuid,
                "begin": packet.timestamp,
                "depth": len(stack),
                "args": args,
            }
            stack.append(found)
            slices.append(found)
    assert not any(open_slices.values())
    return tracks, slices


def test_tracks_slices_and_annotations_are_all_there() -> None:
    rows = [
        {"name": "step", "kind": "annotation", "start_s": 0.0, "duration_s": 3e-6, "stream": "host"},
        {"name": "aten.mm.default", "kind": "matmul", "module": "a.b", "phase": "forward", "shapes": "[2,3][3,4]",
         "op_id": 0, "bytes_moved": 100.0, "flops": 48.0, "start_s": 1e-6, "duration_s": 1.5e-6, "stream": "host",
         "correlation": 7, "external_id": 0},
        {"name": "sgemm", "kind": "kernel", "start_s": 2e-6, "duration_s": 1e-6, "stream": "gpu 0 stream 7"},
        {"name": "sgemm", "kind": "kernel", "start_s": 2e-6, "duration_s": 0.0, "stream": "gpu 0 stream 7", "rank": 1},
    ]  # fmt: skip
    tracks, slices = parse(encode_perfetto(Trace.from_rows(rows, title="demo")))
    processes = {u: t.process.process_name for u, t in tracks.items() if t.HasField("process")}
    assert sorted(processes.values()) == ["demo rank 0", "demo rank 1"]
    named = {u: (processes[t.parent_uuid], t.name) for u, t in tracks.items() if u not in processes}
    found = [(s["name"], s["category"], *named[s["track"]], s["begin"], s["end"], s["depth"]) for s in slices]
    assert found == [
        ("step", "annotation", "demo rank 0", "host", 0, 3000, 0),
        ("aten.mm.default", "matmul", "demo rank 0", "host", 1000, 2500, 1),
        ("sgemm", "kernel", "demo rank 0", "gpu 0 stream 7", 2000, 3000, 0),
        ("sgemm", "kernel", "demo rank 1", "gpu 0 stream 7", 2000, 2000, 0),
    ]
    assert slices[1]["args"] == {
        "module": "a.b", "phase": "forward", "shapes": "[2,3][3,4]", "op_id": 0, "bytes": 100, "flops": 48,
        "correlation": 7, "external_id": 0,
    }  # fmt: skip
    assert slices[0]["args"] == {}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), st.integers(0, 1)), max_size=30))
@settings(deadline=None)
def test_every_event_is_one_slice_with_its_own_times(rows: list[tuple[int, int, int]]) -> None:
    """Partly overlapping events too, as long as the lanes suffice (30 events need at most 8 in these ranges)."""
    events = [
        {"name": str(i), "start_s": s * 1e-9, "duration_s": d * 1e-9, "stream": f"s{r}"}
        for i, (s, d, r) in enumerate(rows)
    ]
    tracks, slices = parse(encode_perfetto(Trace.from_rows(events)))
    assert sorted(int(s["name"]) for s in slices) == list(range(len(rows)))
    clipped = 0
    for s in slices:
        start, duration, stream = rows[int(s["name"])]
        assert (s["begin"], tracks[s["track"]].name) == (start, f"s{stream}")
        assert s["end"] <= start + duration
        clipped += s["end"] != start + duration
    assert clipped == 0 or len(rows) > 8


def test_times_before_zero_are_shifted_not_lost() -> None:
    rows = [{"name": "a", "start_s": -2e-9, "duration_s": 1e-9}, {"name": "b", "start_s": 0.0, "duration_s": 1e-9}]
    _, slices = parse(encode_perfetto(Trace.from_rows(rows)))
    assert [(s["begin"], s["end"]) for s in slices] == [(0, 1), (2, 3)]


def test_the_widest_numbers_fit(tmp_path: Path) -> None:
    wide = 2**62
    n = 2000
    columns = {"name": [f"n{i}" for i in range(n)], "module": [f"m{i}" for i in range(n)], "phase": "p"}
    columns |= {"shapes": [f"s{i}" for i in range(n)], "op_id": wide, "correlation": wide, "external_id": wide}
    columns |= {"bytes_moved": 1e30, "flops": 1e30, "start_s": np.full(n, 3.9e9), "duration_s": 0.0}
    trace = Trace.from_columns(columns | {"stream": [f"t{i}" for i in range(n)]})
    _, slices = parse(encode_perfetto(trace))
    assert len(slices) == n
    assert slices[-1]["args"]["flops"] == int(9e18)
    save_trace(trace, tmp_path / "t.pftrace")
