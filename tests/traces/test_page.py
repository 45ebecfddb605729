"""The page of a diff, opened in headless Chromium: it draws, sorts and filters, says no error, and fetches nothing."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretrace.ir import ForetraceError
from foretrace.traces import Diff, Trace, diff_traces, load_trace
from foretrace.traces.compare.page import Roofs, render_page, save_page
from foretrace.traces.compare.side_by_side import save_side_by_side, side_by_side

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
NASTY = "</script><script>document.title='stolen'</script><img src=http://example.org/x>&\u2028\"'"


def trace(source: str, factor: float = 1.0, extra: bool = False) -> Trace:
    rows: list[dict[str, Any]] = []
    for layer in range(4):
        for name, kind, seconds in (("aten.mm", "matmul", 4e-4), ("aten.gelu", "elementwise", 5e-5)):
            slow = factor if kind == "matmul" else 1.0
            rows.append(
                {
                    "name": f"{name}.default",
                    "kind": kind,
                    "module": f"h.{layer}.mlp",
                    "phase": "forward",
                    "stream": "compute",
                    "shapes": "[64,64][64,64]" if kind == "matmul" else "[64,64]",
                    "op_id": len(rows),
                    "start_s": 5e-4 * len(rows),
                    "duration_s": seconds * slow,
                    "flops": 1e6 if kind == "matmul" else 1e4,
                    "bytes_moved": 5e4,
                }
            )
    if extra:
        rows.append({**rows[-1], "name": NASTY, "module": NASTY, "op_id": 99, "start_s": 0.02, "duration_s": 1e-3})
    memory = {"memory": {"time_s": [0.0, 1e-3, 2e-3], "allocated_bytes": [1e6, 3e6, 2e6]}, "warnings": [NASTY]}
    return Trace.from_rows(rows, title=f"{source} {NASTY}", source=source, system="somewhere", info=memory)


@pytest.fixture(scope="module")
def diff() -> Diff:
    return diff_traces(trace("predicted"), trace("measured", 1.5, extra=True))


WATCH = """<script>
window.blocked = [];
addEventListener("securitypolicyviolation", event => blocked.push(event.blockedURI));
</script>"""
REPORT = """<script>
await_load = () => new Promise(done => setTimeout(done, 300));
await_load().then(() => {
  const asked = performance.getEntriesByType("resource").map(entry => entry.name);
  document.body.dataset.asked = JSON.stringify([...asked, ...blocked]);
});
</script></body>"""


def browse(page: str, folder: Path) -> tuple[str, str, list[str]]:
    """The document after its script ran, what the console said, and every address that it asked for."""
    path = folder / "watched.html"
    path.write_text(page.replace("<main>", f"{WATCH}<main>", 1).replace("</body>", REPORT))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True, cwd=folder)
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    asked = re.search(r'data-asked="(.*?)"', done.stdout)
    assert asked
    return done.stdout, said, [url for url in json.loads(unescape(asked[1])) if not url.startswith("data:")]


class Found(HTMLParser):
    """Ids, and the rows of each table by the id of what holds it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.rows: dict[str, int] = {}
        self.shapes: dict[str, int] = {}
        self.ready = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "body":
            self.ready = given.get("data-ready") or ""
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "tr" and self.ids:
            self.rows[self.ids[-1]] = self.rows.get(self.ids[-1], 0) + 1
        if tag in ("rect", "circle", "path") and self.ids:
            self.shapes[self.ids[-1]] = self.shapes.get(self.ids[-1], 0) + 1


@pytest.fixture(scope="module")
def opened(diff: Diff, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, str, list[str], str]:
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    save_page(diff, folder / "diff.html", Roofs(3e12, {"bfloat16": 1e15}))
    clicks = """<script>
    const press = (id, n) => document.querySelectorAll(`#${id} th button`)[n].click();
    const first = id => document.querySelector(`#${id} tbody tr`)?.innerText ?? "";
    const result = {};
    press("operators", 4); press("operators", 4); result.ascending = first("operators");
    press("operators", 4); result.descending = first("operators");
    const box = document.querySelector("#operators input"); box.value = "h.3"; box.dispatchEvent(new Event("input"));
    result.filtered = document.querySelectorAll("#operators tbody tr").length;
    const depth = document.getElementById("depth"); depth.value = "1"; depth.dispatchEvent(new Event("change"));
    result.modules = document.querySelectorAll("#modules tbody tr").length;
    document.querySelector("#scatter-key button").click();
    result.hidden = [...document.querySelectorAll("#scatter circle")].filter(c => c.style.display === "none").length;
    document.title = JSON.stringify(result);
    </script></body>"""
    text, said, asked = browse((folder / "diff.html").read_text().replace("</body>", clicks), folder)
    title = re.search(r"<title>(.*?)</title>", text)
    return Found(text), said, asked, title[1] if title else ""


def test_the_page_draws_every_part(opened: tuple[Found, str, list[str], str]) -> None:
    found = opened[0]
    assert found.ready == "yes"
    assert found.rows["causes"] == 3  # a header, the slower products, the extra operator
    assert found.rows["only-second"] == 2
    assert found.shapes["scatter"] >= 8 + 3
    assert all(found.shapes[part] for part in ("waterfall", "kinds", "roofline", "activity", "memory"))


def test_the_page_says_no_error_and_fetches_nothing(opened: tuple[Found, str, list[str], str]) -> None:
    _, said, asked, title = opened
    assert said == ""
    assert asked == []
    assert "stolen" not in title


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("policy", [True, False])
def test_a_page_that_fetches_is_caught(diff: Diff, tmp_path: Path, policy: bool) -> None:
    page = render_page(diff).replace("<main>", "<main><img src='http://example.invalid/x.png'>")
    if not policy:
        page = page.replace("default-src 'none'; ", "").replace("img-src data:", "")
    assert set(browse(page, tmp_path)[2]) == {"http://example.invalid/x.png"}


def test_tables_sort_and_filter(opened: tuple[Found, str, list[str], str]) -> None:
    result = json.loads(opened[3])
    assert result["ascending"].split("\t")[4] == "0"
    assert result["descending"].split("\t")[4] == "7"
    assert result["filtered"] == 2
    assert result["modules"] == 2
    assert result["hidden"] == 4


def test_no_text_of_a_trace_becomes_a_tag(diff: Diff) -> None:
    page = render_page(diff)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert page.count("example.org") == page.count("\\u003cimg src=http://example.org") + page.count(
        "&lt;img src=http:"
    )


def test_an_empty_side_makes_a_page() -> None:
    empty = Trace.from_columns({"name": [], "start_s": [], "duration_s": []})
    assert "NaN" not in render_page(diff_traces(empty, trace("measured")))
    assert (
        "Infinity"
        not in render_page(diff_traces(trace("predicted"), empty)).split('id="data">')[1].split("</script>")[0]
    )


def test_both_timelines_in_one_file(diff: Diff, tmp_path: Path) -> None:
    both, processes, flows = side_by_side(diff)
    assert len(both) == len(diff.predicted) + len(diff.measured)
    assert len(processes) == 2
    joined = np.flatnonzero(flows)
    assert len(joined) == 2 * len(diff.by_op)
    for flow in np.unique(flows[joined]):
        rows = np.flatnonzero(flows == flow)
        assert len(set(both.rank[rows])) == 2
        assert len(set(both.op_id[rows])) == 1
        assert len({both.name[int(r)] for r in rows}) == 1
    save_side_by_side(diff, tmp_path / "both.pftrace")
    assert load_trace(tmp_path / "both.pftrace") == both
    assert ends_of_flows(tmp_path / "both.pftrace") == {int(f): 2 for f in np.unique(flows[joined])}


def ends_of_flows(path: Path) -> dict[int, int]:
    perfetto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    message = perfetto.Trace()
    message.ParseFromString(path.read_bytes())
    counts: dict[int, int] = {}
    for packet in message.packet:
        for flow in packet.track_event.flow_ids:
            counts[flow] = counts.get(flow, 0) + 1
    return counts


def test_another_ending_is_refused(diff: Diff, tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"\.pftrace"):
        save_side_by_side(diff, tmp_path / "both.json")
    with pytest.raises(ForetraceError, match="does not exist"):
        save_page(diff, tmp_path / "nowhere" / "diff.html")
    assert os.listdir(tmp_path) == []
