// Small drawings in SVG. Colours are classes of console.css.

import { svg } from "./dom.js";
import { bytes, count, time } from "./words.js";

export const LEVELS = ["calm", "evict", "refuse", "release", "end"];

const SPARK_LEAST = 30; // values across a drawing: a minute, and five when there are as many
const SPARK_MOST = 150;

/** A line of the last values, the newest on the right; at the bottom is 0. */
export class Spark {
  constructor() {
    this.values = [];
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.node = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" },
      this.area, this.line);
  }

  /** whole: what would fill the height; without it, the largest value does. */
  add(value, whole = null) {
    this.values.push(value);
    if (this.values.length > SPARK_MOST) this.values.shift();
    const most = Math.max(...this.values, whole ?? 1e-9);
    const room = Math.max(this.values.length, SPARK_LEAST);
    const first = room - this.values.length;
    const points = this.values.map((one, at) =>
      `${(((first + at) / (room - 1)) * 100).toFixed(2)},${(28 - (25 * one) / most).toFixed(2)}`);
    if (points.length < 2) return;
    const [left] = points[0].split(",");
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${left},30L${points.join("L")}L100,30Z`);
  }
}

/** The level of pressure over the last seconds, `wide` pixels. `changes` are the oldest first. */
export function levels(changes, level, span_s, wide) {
  const [left, row] = [58, 20];
  const height = LEVELS.length * row + 22;
  const across = (ago) => left + (wide - left) * (1 - Math.min(ago / span_s, 1));
  const down = (name) => (LEVELS.length - 1 - LEVELS.indexOf(name)) * row + row / 2;
  const seen = changes.filter((change) => change.ago_s < span_s);
  const first = seen.length ? seen[0].before : level;
  const steps = [[span_s, first], ...seen.map((change) => [change.ago_s, change.after])];
  const parts = LEVELS.flatMap((name) => [
    svg("line", { class: "grid", x1: left, x2: wide, y1: down(name), y2: down(name) }),
    svg("text", { x: left - 10, y: down(name) + 4, "text-anchor": "end", class: name === level && "strong" }, name),
  ]);
  steps.forEach(([ago, name], at) => {
    if (!LEVELS.includes(name)) return;
    const until = steps[at + 1]?.[0] ?? 0;
    const width = Math.max(across(until) - across(ago), 2);
    parts.push(svg("rect", { class: `l-${name}`, x: across(ago), y: down(name) - 3, width, height: 6, rx: 3 }));
  });
  const base = height - 4;
  parts.push(svg("text", { x: left, y: base }, `${time(span_s)} ago`),
    svg("text", { x: wide, y: base, "text-anchor": "end" }, "now"));
  const lasting = seen.length ? `${seen.length} changes` : "no change";
  return drawing(wide, height, `Level of pressure: ${level} now, ${lasting} in the last ${time(span_s)}`, parts);
}

/** What was live when each cycle of the collector began, and what it left; the tick is the goal. */
export function cycles(history, wide) {
  const [left, base, top] = [64, 132, 8];
  const before = (cycle) => Math.max(cycle.live_before_bytes, cycle.peak_bytes);
  const most = Math.max(1, ...history.map((cycle) => Math.max(before(cycle), cycle.live_after_bytes)));
  const tall = (size) => Math.max(((base - top) * size) / most, 1);
  const step = (wide - left) / Math.max(history.length, 12);
  const parts = [0, 0.5, 1].flatMap((share) => {
    const y = base - (base - top) * share;
    return [
      svg("line", { class: "grid", x1: left, x2: wide, y1: y, y2: y }),
      svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, bytes(most * share)),
    ];
  });
  history.forEach((cycle, at) => {
    const [x, width] = [left + at * step + step * 0.14, step * 0.72];
    const bar = (kind, size) =>
      svg("rect", { class: kind, x, width, y: base - tall(size), height: tall(size), rx: 1.5 });
    const took = time(cycle.begin_s + cycle.mark_s + cycle.sweep_s);
    parts.push(svg("g", {},
      svg("title", {}, `cycle ${count(cycle.number)}, ${cycle.reason}: ${bytes(before(cycle))} to ${bytes(cycle.live_after_bytes)} in ${took}`),
      bar("before", before(cycle)), bar("after", cycle.live_after_bytes),
      cycle.goal_bytes > 0 && cycle.goal_bytes <= most
        ? svg("line", { class: "goal", x1: x - 1, x2: x + width + 1, y1: base - tall(cycle.goal_bytes), y2: base - tall(cycle.goal_bytes) })
        : null));
    if (at === history.length - 1 || at % 10 === 0) {
      parts.push(svg("text", { x: x + width / 2, y: base + 18, "text-anchor": "middle" }, count(cycle.number)));
    }
  });
  return drawing(wide, base + 24, "Live bytes before and after each cycle of the collector", parts);
}

function drawing(wide, height, label, parts) {
  return svg("svg", { width: wide, height, viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": label }, ...parts);
}

