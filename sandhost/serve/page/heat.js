// The heat map: a square for each slot of guests' memory, in the order of their addresses.

import { el, find, say, show } from "./dom.js";
import { Rows } from "./table.js";
import { bytes, count, many, name } from "./words.js";

const STATES = {
  live: "in use",
  warm: "kept warm for the next guest",
  stale: "left to the kernel",
  queued: "on their way back",
  quarantined: "never used again",
  cold: "empty",
};
const GAP = 2;
const SIDES = [34, 28, 22, 18, 15, 12, 10]; // few steps, so that the map does not move with each slot
const WANTED = 270; // pixels of height, if squares of the least size fit in them

/** 0.16 to 1 for 4 KiB to 16 MiB and more: each doubling is one step, as in `sandhost report`. */
const heat = (resident) =>
  resident > 0 ? 0.16 + 0.84 * Math.min(Math.max(Math.log2(resident / 4096), 0) / 12, 1) : 0;

export class HeatMap {
  constructor() {
    this.canvas = find("heat");
    this.cell = find("heat-cell");
    this.key = new Rows(find("heat-key"), () => keyItem());
    this.slots = null;
    this.at = -1; // the cell that is pointed at
    this.canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    this.canvas.addEventListener("pointerleave", () => this.point(-1));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(slots) {
    this.slots = slots;
    const several = slots.per_cell > 1 ? `, ${slots.per_cell} to a square` : "";
    say(find("slots-note"), slots.slots
      ? `${many(slots.slots, "slot")} used so far, in the order of their addresses${several}. The stronger the colour, the more pages are resident.`
      : "No guest has had memory yet. Each gets a slot of its own, and a square here.");
    show(this.canvas.parentElement, slots.slots > 0);
    const states = Object.keys(STATES).filter((state) => slots.counts[state]);
    const items = states.map((state) => ({ state, slots: slots.counts[state], resident: slots.resident[state] ?? 0 }));
    this.key.show(items, ({ state }) => state);
    const held = items.find(({ state }) => state === "live");
    this.canvas.setAttribute("aria-label",
      `Heat map of ${many(slots.slots, "slot")}: ${count(held?.slots ?? 0)} in use with ${bytes(held?.resident ?? 0)} resident`);
    this.draw();
    this.tell();
  }

  layout() {
    const cells = this.slots.states.length;
    const width = this.canvas.parentElement.clientWidth;
    const columnsOf = (size) => Math.max(1, Math.floor((width + GAP) / (size + GAP)));
    const fits = (size) => Math.ceil(cells / columnsOf(size)) * (size + GAP) <= WANTED;
    const columns = columnsOf(SIDES.find(fits) ?? SIDES.at(-1));
    return { cells, columns, side: (width + GAP) / columns - GAP, width };
  }

  draw() {
    if (!this.slots?.states.length || !this.canvas.parentElement.clientWidth) return;
    const { cells, columns, side, width } = this.layout();
    const height = Math.ceil(cells / columns) * (side + GAP) - GAP;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const colour = (property) => style.getPropertyValue(property).trim();
    const empty = colour("--cell");
    const colours = {
      live: colour("--accent"), warm: colour("--warm"), stale: colour("--stale"), queued: colour("--stale"),
      quarantined: colour("--bad"), cold: empty,
    };
    for (let at = 0; at < cells; at += 1) {
      const [x, y] = [(at % columns) * (side + GAP), Math.floor(at / columns) * (side + GAP)];
      const square = (fill, alpha) => {
        pen.globalAlpha = alpha;
        pen.fillStyle = fill;
        pen.beginPath();
        pen.roundRect(x, y, side, side, Math.min(4, side / 5));
        pen.fill();
      };
      const state = this.slots.states[at];
      square(empty, 1);
      square(colours[state] ?? empty, state === "quarantined" ? 1 : heat(this.slots.resident_bytes[at]));
      if (at === this.at) {
        pen.globalAlpha = 1;
        pen.strokeStyle = colour("--ink");
        pen.lineWidth = 1.5;
        pen.stroke();
      }
    }
  }

  under(event) {
    const { cells, columns, side } = this.layout();
    const column = Math.floor(event.offsetX / (side + GAP));
    const at = Math.floor(event.offsetY / (side + GAP)) * columns + column;
    return column < columns && at < cells ? at : -1;
  }

  move(event) {
    if (!this.slots?.states.length) return;
    const { cells, columns } = this.layout();
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -cells, End: cells };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.point(this.at < 0 ? 0 : Math.min(Math.max(this.at + step, 0), cells - 1));
  }

  point(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
    this.tell();
  }

  tell() {
    const { slots, at } = this;
    if (at < 0 || at >= slots.states.length) {
      say(this.cell, "");
      return;
    }
    const first = at * slots.per_cell;
    const last = Math.min(first + slots.per_cell, slots.slots) - 1;
    const whose = slots.names[slots.owners[at]];
    say(this.cell, [
      first === last ? `Slot ${count(first)}` : `Slots ${count(first)} to ${count(last)}`,
      `${STATES[slots.states[at]] ?? slots.states[at]}`,
      `${bytes(slots.resident_bytes[at])} resident of ${bytes(slots.committed_bytes[at])}`,
      ...(whose ? [name(whose[0])] : []),
    ].join(" · "));
  }
}

function keyItem() {
  const square = el("i");
  const number = el("b");
  const words = el("span");
  return {
    node: el("li", {}, square, number, words),
    update({ state, slots, resident }) {
      square.className = `s-${state}`;
      say(number, count(slots));
      say(words, `${STATES[state]}${resident ? `, ${bytes(resident)}` : ""}`);
    },
  };
}
