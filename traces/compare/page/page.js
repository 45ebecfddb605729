"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const [A, B] = D.sides.map(s => s.label);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#3b6fb6", "#d9822b", "#2f8f5b", "#b5403a", "#8a6fc0", "#16a2b0", "#8c6d4f", "#d16ba5", "#7f8a99",
  "#a8a12b", "#5c5fd6", "#c95d2c"];
const kinds = [...new Set(D.ops.kind)].map(i => D.strings[i]);
const colour = kind => COLOURS[Math.max(kinds.indexOf(kind), 0) % COLOURS.length];
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- small helpers: text and numbers ------------------------------------------------------------------------
function scaled(value, units, base) {
  const size = Math.abs(value);
  for (const [scale, unit] of units) if (size >= scale * base) return `${+(value / scale).toPrecision(4)} ${unit}`;
  return value ? `${+(value / units.at(-1)[0]).toPrecision(3)} ${units.at(-1)[1]}` : "0";
}
const time = s => s == null ? "–" : scaled(s, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]], 1);
const bytes = b => scaled(b, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]], 1);
const rate = f => scaled(f, [[1e15, "PFLOP/s"], [1e12, "TFLOP/s"], [1e9, "GFLOP/s"], [1e6, "MFLOP/s"], [1e3, "kFLOP/s"], [1, "FLOP/s"]], 1);
const signed = s => (s > 0 ? "+" : s < 0 ? "−" : "") + time(Math.abs(s));
const error = (p, m) => m > 0 ? (p - m) / m : p > 0 ? Infinity : 0;
const percent = e => e == null || !isFinite(e) ? "–" : `${e > 0 ? "+" : e < 0 ? "−" : ""}${(Math.abs(e) * 100).toFixed(1)} %`;
const tone = e => e == null || !isFinite(e) || Math.abs(e) < 0.1 ? "" : e > 0 ? "high" : "low";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) k in node && k !== "list" ? node[k] = v : node.setAttribute(k, v);
  node.append(...children);
  return node;
}
function draw(parent, tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
function picture(id, width, height, label) {
  const svg = draw(document.getElementById(id), "svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
  svg.setAttribute("width", width);
  return svg;
}
const tip = document.getElementById("tip");
function hover(node, text) {
  node.addEventListener("pointermove", event => {
    tip.textContent = typeof text === "function" ? text() : text;
    tip.style.display = "block";
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
  });
  node.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}

// ---- tables: sorted by a click, filtered as one types, a hundred rows at a time ------------------------------
function table(id, rows, columns, {sort, step = 25, filter = false} = {}) {
  const home = document.getElementById(id);
  let key = sort ?? columns.length - 1, down = true, shown = step, wanted = "";
  const body = make("tbody"), head = make("tr");
  const more = make("button", {className: "more", type: "button"});
  columns.forEach((column, i) => {
    const button = make("button", {type: "button"}, column.title);
    button.addEventListener("click", () => { down = key === i ? !down : !column.text; key = i; fill(); });
    head.append(make("th", {className: column.text ? "text" : "", scope: "col"}, button));
  });
  function fill() {
    const {value, text} = columns[key];
    const order = text ? (a, b) => String(value(a)).localeCompare(String(value(b))) : (a, b) => value(a) - value(b);
    const found = rows.filter(r => !wanted || columns.some(c => c.text && String(c.value(r)).toLowerCase().includes(wanted)));
    found.sort((a, b) => (down ? -1 : 1) * order(a, b));
    body.replaceChildren(...found.slice(0, shown).map(row => make("tr", {}, ...columns.map(c => {
      const value = c.value(row), said = c.show ? c.show(value, row) : String(value);
      const cell = make("td", {className: `${c.text ? "text" : ""} ${c.tone ? tone(value) : ""}`.trim()}, said);
      if (c.text) cell.title = said;
      return cell;
    }))));
    [...head.children].forEach((th, i) => i === key ? th.setAttribute("aria-sort", down ? "descending" : "ascending") : th.removeAttribute("aria-sort"));
    more.textContent = `${Math.min(shown, found.length).toLocaleString("en")} of ${found.length.toLocaleString("en")} rows: show more`;
    more.hidden = shown >= found.length;
  }
  more.addEventListener("click", () => { shown += 10 * step; fill(); });
  if (filter) {
    const box = make("input", {type: "search", placeholder: "filter: name, module, shape…", ariaLabel: "filter rows"});
    box.addEventListener("input", () => { wanted = box.value.trim().toLowerCase(); shown = step; fill(); });
    home.append(make("div", {className: "tools"}, box));
  }
  home.append(make("div", {className: "scroll"}, make("table", {}, make("thead", {}, head), body)), more);
  fill();
  return replacement => { rows = replacement; fill(); };
}
const seconds = (title, value) => ({title, value, show: time});
const pair = [seconds(A, r => r.predicted_s), seconds(B, r => r.measured_s),
  {title: "difference", value: r => r.measured_s - r.predicted_s, show: signed},
  {title: "error", value: r => error(r.predicted_s, r.measured_s), show: percent, tone: true}];
const text = (title, value) => ({title, value, text: true});

// ---- the parts of the page -----------------------------------------------------------------------------------
function waterfall() {
  const small = 0.002 * Math.max(...D.waterfall.map(s => Math.abs(s.seconds)));
  const between = D.waterfall.slice(1, -1), rest = between.filter(s => Math.abs(s.seconds) < small);
  const steps = [D.waterfall[0], ...between.filter(s => Math.abs(s.seconds) >= small),
    ...(rest.length ? [{label: `${rest.length} smaller`, seconds: rest.reduce((sum, s) => sum + s.seconds, 0)}] : []), D.waterfall.at(-1)];
  const width = 1120, left = 250, right = 110, height = 26;
  const svg = picture("waterfall", width, steps.length * height + 10, "where the difference comes from");
  let at = 0, low = 0, high = 0;
  const spans = steps.map((s, i) => {
    const whole = i === 0 || i === steps.length - 1;
    const from = whole ? 0 : at, to = whole ? s.seconds : at + s.seconds;
    at = to; low = Math.min(low, from, to); high = Math.max(high, from, to);
    return {...s, from, to, whole};
  });
  const x = s => left + (s - low) / (high - low || 1) * (width - left - right);
  spans.forEach((s, i) => {
    const y = i * height + 5, start = Math.min(x(s.from), x(s.to)), size = Math.max(Math.abs(x(s.to) - x(s.from)), 1);
    const fill = s.whole ? css(i ? "--second" : "--first") : css(s.seconds > 0 ? "--over" : "--under");
    draw(svg, "text", {x: left - 10, y: y + 15, "text-anchor": "end"}, s.label);
    const bar = draw(svg, "rect", {x: start, y: y + 2, width: size, height: height - 8, fill, rx: 2});
    if (i < spans.length - 1) draw(svg, "path", {class: "half", d: `M${x(s.to)} ${y + height - 6}v${height - 2}`});
    draw(svg, "text", {x: start + size + 6, y: y + 15}, s.whole ? time(s.seconds) : signed(s.seconds));
    hover(bar, `${s.label}: ${s.whole ? time(s.seconds) : signed(s.seconds)}`);
  });
}

function bars(id, rows) {
  const shown = rows.filter(r => r.predicted_s || r.measured_s).slice(0, 14), width = 560, left = 130, height = 34;
  if (!shown.length) return;
  const svg = picture(id, width, shown.length * height + 6, "seconds by kind");
  const top = Math.max(...shown.flatMap(r => [r.predicted_s, r.measured_s])) || 1;
  shown.forEach((r, i) => {
    const y = i * height;
    draw(svg, "text", {x: left - 8, y: y + 21, "text-anchor": "end"}, r.label || "(none)");
    [[r.predicted_s, "--first", A], [r.measured_s, "--second", B]].forEach(([s, tint, side], j) => {
      const bar = draw(svg, "rect", {x: left, y: y + 4 + j * 13, width: Math.max(s / top * (width - left - 90), 1), height: 12, fill: css(tint)});
      hover(bar, `${r.label}, ${side}: ${time(s)}`);
    });
    const e = error(r.predicted_s, r.measured_s);
    draw(svg, "text", {x: width - 4, y: y + 21, "text-anchor": "end", style: tone(e) ? `fill:${css("--" + tone(e))}` : ""}, percent(e));
  });
}

const ops = D.ops.predicted_s.map((_, i) => {
  const row = {};
  for (const [key, values] of Object.entries(D.ops)) row[key] = D.coded.includes(key) ? D.strings[values[i]] : values[i];
  return row;
});
const about = o => `${o.name}  ${o.shapes}\n${o.module || "(no module)"}  ${o.phase}\n${A} ${time(o.predicted_s)}, ${B} ${time(o.measured_s)}, ` +
  `${percent(error(o.predicted_s, o.measured_s))}\nconfidence ${(o.confidence * 100).toFixed(0)} %` + (o.measured_ops > 1 ? `, ${o.measured_ops} operators` : "");

function logarithmic(svg, {x0, x1, y0, y1, width, height, left, bottom, xName, yName, xText, yText}) {
  const lx = Math.log10, px = v => left + (lx(v) - x0) / (x1 - x0) * (width - left - 12);
  const py = v => height - bottom - (lx(v) - y0) / (y1 - y0) * (height - bottom - 12);
  const every = span => Math.max(1, Math.ceil(span / 8));
  for (let d = Math.ceil(x0); d <= x1; d += every(x1 - x0)) {
    draw(svg, "path", {class: "grid", d: `M${px(10 ** d)} 12V${height - bottom}`});
    draw(svg, "text", {class: "axis", x: px(10 ** d), y: height - bottom + 16, "text-anchor": "middle"}, xText(10 ** d));
  }
  for (let d = Math.ceil(y0); d <= y1; d += every(y1 - y0)) {
    draw(svg, "path", {class: "grid", d: `M${left} ${py(10 ** d)}H${width - 12}`});
    draw(svg, "text", {class: "axis", x: left - 6, y: py(10 ** d) + 4, "text-anchor": "end"}, yText(10 ** d));
  }
  draw(svg, "text", {class: "axis", x: (left + width) / 2, y: height - 6, "text-anchor": "middle"}, xName);
  draw(svg, "text", {class: "axis", transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, yName);
  return [px, py];
}
function decades(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  low = Math.floor(Math.log10(low)); high = Math.ceil(Math.log10(high));
  return [low, Math.max(high, low + 1)];
}
function points(svg, found, place) {
  const dots = new Map();
  for (const {row, x, y, hollow} of found) {
    const tint = colour(row.kind);
    const dot = draw(svg, "circle", {cx: x, cy: y, r: 3.4, fill: hollow ? "none" : tint, stroke: tint, "fill-opacity": .6, "stroke-opacity": .8});
    hover(dot, () => about(row));
    dots.set(row.kind, [...(dots.get(row.kind) ?? []), dot]);
  }
  const key = document.getElementById(place);
  for (const [kind, all] of dots) {
    const button = make("button", {type: "button", ariaPressed: "true"}, make("span", {className: "side"}), `${kind} (${all.length})`);
    button.firstChild.style.background = colour(kind);
    button.addEventListener("click", () => {
      const on = button.ariaPressed !== "true";
      button.ariaPressed = String(on);
      for (const dot of all) dot.style.display = on ? "" : "none";
    });
    key.append(button);
  }
}
function scatter() {
  const found = ops.filter(o => o.predicted_s > 0 && o.measured_s > 0).slice(0, D.most_points);
  if (!found.length) { document.getElementById("scatter").textContent = "No operator was matched."; return; }
  const [low, high] = decades(found.flatMap(o => [o.predicted_s, o.measured_s]));
  const svg = picture("scatter", 560, 480, "predicted against measured seconds of each operator");
  const [px, py] = logarithmic(svg, {x0: low, x1: high, y0: low, y1: high, width: 560, height: 480, left: 66, bottom: 40,
    xName: B, yName: A, xText: time, yText: time});
  const line = (factor, name) => {
    const first = 10 ** low * Math.max(1, 1 / factor), last = 10 ** high * Math.min(1, 1 / factor);
    draw(svg, "path", {class: name, d: `M${px(first)} ${py(first * factor)}L${px(last)} ${py(last * factor)}`});
  };
  line(1, "rule"); line(2, "half"); line(.5, "half");
  points(svg, found.map(row => ({row, x: px(row.measured_s), y: py(row.predicted_s)})), "scatter-key");
}
function roofline() {
  const found = ops.filter(o => o.flops > 0 && o.bytes_moved > 0).slice(0, D.most_points / 2);
  const roof = D.roofs;
  if (!found.length) { document.getElementById("roofline").textContent = "No matched operator states its FLOPs and bytes."; return; }
  const rates = found.flatMap(o => [o.predicted_s, o.measured_s].filter(s => s > 0).map(s => o.flops / s));
  const [x0, x1] = decades(found.map(o => o.flops / o.bytes_moved)), [y0, y1] = decades([...rates, ...roof.flop_per_s.map(r => 1.5 * r.value)]);
  const svg = picture("roofline", 560, 480, "roofline");
  const [px, py] = logarithmic(svg, {x0, x1, y0, y1, width: 560, height: 480, left: 84, bottom: 40, xName: "FLOP per byte", yName: "FLOP/s",
    xText: v => String(+v.toPrecision(2)), yText: rate});
  const low = 10 ** x0, high = 10 ** x1, floor = 10 ** y0;
  for (const {label, value} of roof.flop_per_s) {
    const knee = roof.bytes_per_s ? value / roof.bytes_per_s : low, from = Math.min(Math.max(knee, low), high);
    const line = draw(svg, "path", {class: "rule", d: `M${px(from)} ${py(Math.max(value, floor))}H${px(high)}`});
    draw(svg, "text", {class: "axis", x: px(high) - 4, y: py(Math.max(value, floor)) - 4, "text-anchor": "end"}, `${label} ${rate(value)}`);
    hover(line, `${label}: ${rate(value)}`);
  }
  if (roof.bytes_per_s) {
    const peak = Math.max(10 ** y1 / 10, ...roof.flop_per_s.map(r => r.value));
    const start = Math.max(low, floor / roof.bytes_per_s), end = Math.min(high, peak / roof.bytes_per_s);
    if (end > start) draw(svg, "path", {class: "rule", d: `M${px(start)} ${py(start * roof.bytes_per_s)}L${px(end)} ${py(end * roof.bytes_per_s)}`});
    draw(svg, "text", {class: "axis", x: 90, y: 26}, `memory ${bytes(roof.bytes_per_s)}/s`);
  }
  const both = [];
  for (const row of found) {
    const x = px(row.flops / row.bytes_moved);
    if (row.predicted_s > 0) both.push({row, x, y: py(row.flops / row.predicted_s), hollow: true});
    if (row.measured_s > 0) both.push({row, x, y: py(row.flops / row.measured_s), hollow: false});
  }
  points(svg, both, "roofline-key");
}

const PARTS = [["compute_s", "compute", "--first"], ["exposed_communication_s", "exposed communication", "--over"],
  ["copy_s", "copies", "--mark"], ["launch_idle_s", "idle, waiting for a launch", "--second"], ["other_idle_s", "other idle", "--soft"]];
function activity() {
  const width = 1120, left = 100, svg = picture("activity", width, 84, "what the device did");
  const top = Math.max(...D.activity.map(a => PARTS.reduce((s, [k]) => s + a[k], 0))) || 1;
  D.activity.forEach((a, i) => {
    let x = left;
    draw(svg, "text", {x: left - 8, y: i * 38 + 25, "text-anchor": "end"}, D.sides[i].label);
    for (const [key, label, tint] of PARTS) {
      const size = a[key] / top * (width - left - 10);
      if (!size) continue;
      hover(draw(svg, "rect", {x, y: i * 38 + 8, width: size, height: 26, fill: css(tint)}), `${label}: ${time(a[key])}`);
      if (size > 60) draw(svg, "text", {x: x + 5, y: i * 38 + 25, style: "fill:#fff"}, time(a[key]));
      x += size;
    }
  });
  const key = document.getElementById("activity-key");
  for (const [, label, tint] of PARTS) {
    const mark = make("span", {className: "side"});
    mark.style.background = css(tint);
    key.append(make("span", {}, mark, label));
  }
  const rows = [["span", "span_s"], ["device busy", "busy_s"], ["compute", "compute_s"], ["communication", "communication_s"],
    ["exposed communication", "exposed_communication_s"], ["communication under compute", "overlapped_communication_s"], ["copies", "copy_s"],
    ["idle", "idle_s"], ["idle, waiting for a launch", "launch_idle_s"], ["other idle", "other_idle_s"], ["host busy", "host_s"]]
    .map(([label, k], i) => ({label, i, predicted_s: D.activity[0][k], measured_s: D.activity[1][k]}));
  table("activity-table", rows, [text("", r => r.label), ...pair], {sort: 2});
}
function memory() {
  const lines = D.memory.map((m, i) => m && {...m, i}).filter(Boolean);
  if (!lines.length) { document.getElementById("memory").textContent = "Neither trace says what memory was in use."; return; }
  const width = 1120, height = 240, left = 80, svg = picture("memory", width, height, "memory in use over the step");
  const span = Math.max(...lines.map(m => m.time_s.at(-1) - m.time_s[0])) || 1, top = Math.max(...lines.flatMap(m => [Math.max(...m.bytes)])) || 1;
  const y = b => height - 30 - b / top * (height - 50);
  for (const part of [0, .5, 1]) {
    draw(svg, "path", {class: "grid", d: `M${left} ${y(part * top)}H${width}`});
    draw(svg, "text", {class: "axis", x: left - 6, y: y(part * top) + 4, "text-anchor": "end"}, bytes(part * top));
  }
  for (const m of lines) {
    const path = m.time_s.map((t, i) => `${i ? "H" : "M"}${(left + (t - m.time_s[0]) / span * (width - left - 4)).toFixed(1)}${i ? "V" : " "}${y(m.bytes[i]).toFixed(1)}`).join("");
    const line = draw(svg, "path", {d: path, fill: "none", stroke: css(m.i ? "--second" : "--first"), "stroke-width": 1.6});
    hover(line, `${D.sides[m.i].label}: peak ${bytes(Math.max(...m.bytes))}`);
  }
  draw(svg, "text", {class: "axis", x: width / 2, y: height - 8, "text-anchor": "middle"}, `0 to ${time(span)}`);
}
function modules() {
  const depth = document.getElementById("depth");
  const cut = n => {
    const found = new Map();
    for (const row of D.by_module) {
      const label = n ? row.label.split(".").slice(0, n).join(".") : row.label;
      const sum = found.get(label) ?? {label, predicted_s: 0, measured_s: 0, count: 0};
      for (const key of ["predicted_s", "measured_s", "count"]) sum[key] += row[key];
      found.set(label, sum);
    }
    return [...found.values()];
  };
  const refill = table("modules", cut(+depth.value), [text("module", r => r.label || "(none)"), {title: "ops", value: r => r.count}, ...pair], {sort: 3, filter: true});
  depth.addEventListener("change", () => refill(cut(+depth.value)));
}

waterfall();
const seen = {slower: "slower", faster: "faster", missing: "only in " + A, extra: "only in " + B};
table("causes", D.causes.map(c => ({...c, size: Math.abs(c.measured_s - c.predicted_s)})),
  [text("what", r => seen[r.what]), text("operator", r => r.name), text("module", r => r.module), text("kind", r => r.kind), text("shapes", r => r.shapes),
    {title: "ops", value: r => r.ops}, ...pair.slice(0, 2), {title: "difference", value: r => r.size, show: (v, r) => signed(r.measured_s - r.predicted_s)}, pair[3]], {sort: 8, step: 12});
bars("kinds", D.by_kind);
table("kinds-table", D.by_kind, [text("kind", r => r.label), {title: "ops", value: r => r.count}, ...pair], {sort: 3});
scatter(); roofline(); activity(); memory(); modules();
table("shapes", D.by_shape, [text("operator and shapes", r => r.label), {title: "ops", value: r => r.count}, ...pair], {sort: 3, filter: true});
table("operators", ops, [text("operator", r => r.name), text("module", r => r.module), text("phase", r => r.phase), text("shapes", r => r.shapes),
  {title: "op id", value: r => r.op_id}, ...pair, {title: "spread", value: r => r.measured_spread_s, show: time},
  {title: "match", value: r => r.confidence, show: v => `${(v * 100).toFixed(0)} %`}], {sort: 6, step: 50, filter: true});
for (const [id, rows] of [["only-first", D.unmatched[0]], ["only-second", D.unmatched[1]]])
  table(id, rows, [text("operator", r => r.name), text("module", r => r.module), text("kind", r => r.kind), {title: "ops", value: r => r.count}, seconds("time", r => r.seconds)], {sort: 4, filter: rows.length > 25});
document.body.dataset.ready = "yes";
