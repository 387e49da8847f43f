// The figures that come first, each with its last minutes.

import { Spark } from "./charts.js";
import { el, find, say } from "./dom.js";
import { percentile, since } from "./history.js";
import { bytes, count, rate, time } from "./words.js";

const refusedOf = ({ requests, view: { figures } }) =>
  Object.values(requests.refused).reduce((sum, one) => sum + one, figures.quota_refusals + figures.pressure_refusals);
const own = (answer) => answer.tenants[0];
const of = (limit, write) => (limit == null ? "no limit" : `of ${write(limit)}`);

// Each: title, value, how it is written, what stands below; what fills the drawing's height, or whether more than 0 is bad.
const FOR_ADMINS = [
  ["Requests a second", (_, history) => history.rate((one) => one.requests.admitted), rate,
    ({ requests }) => `${count(requests.in_flight)} in service, ${count(requests.waiting)} waiting`],
  ["Refused a second", (_, history) => history.rate(refusedOf), rate,
    (answer) => `${count(refusedOf(answer))} so far`, { isBad: true }],
  ["Time of a call, p99", (answer, history) => callTime(answer, history, 99), time,
    (answer, history) => `p50 ${time(callTime(answer, history, 50))}`],
  ["Guests", ({ view }) => view.figures.guests_live, count,
    ({ view }) => `${count(view.figures.guests_peak)} at the peak`],
  ["Memory of guests", ({ view }) => view.figures.committed_bytes, bytes,
    ({ view }) => of(view.figures.memory_limit, bytes), { whole: ({ view }) => view.figures.memory_limit }],
  ["Resident, whole process", ({ view }) => view.figures.process_rss_bytes, bytes,
    ({ view }) => of(view.pressure?.limit_bytes, bytes), { whole: ({ view }) => view.pressure?.limit_bytes }],
];

const FOR_TENANTS = [
  ["Calls a second", (_, history) => history.rate((one) => own(one).calls ?? 0), rate,
    (answer) => `${count(own(answer).calls ?? 0)} so far`],
  ["Refused a second", (_, history) => history.rate((one) => own(one).refusals ?? 0), rate,
    (answer) => `${count(own(answer).refusals ?? 0)} so far`, { isBad: true }],
  ["Guests", (answer) => own(answer).guests ?? 0, count,
    (answer) => of(own(answer).quotas.guests, count), { whole: (answer) => own(answer).quotas.guests }],
  ["Memory of guests", (answer) => own(answer).memory_bytes ?? 0, bytes,
    (answer) => of(own(answer).quotas.memory_limit, bytes), { whole: (answer) => own(answer).quotas.memory_limit }],
];

function callTime(answer, history, percent) {
  const { before } = history;
  return before ? percentile(since(answer.view.latency.call, before.view.latency.call), percent) : null;
}

export class Tiles {
  constructor({ isAdmin }) {
    this.tiles = (isAdmin ? FOR_ADMINS : FOR_TENANTS).map((kind) => new Tile(...kind));
    find("tiles").replaceChildren(...this.tiles.map(({ node }) => node));
  }

  show(answer, history) {
    for (const tile of this.tiles) tile.show(answer, history);
  }
}

class Tile {
  constructor(title, value, write, note, { whole = () => null, isBad = false } = {}) {
    Object.assign(this, { value, write, note, whole, isBad });
    this.number = el("dd");
    this.small = el("dd", { class: "note" });
    this.spark = new Spark();
    this.node = el("div", { class: "card tile" },
      el("dl", {}, el("dt", {}, title), this.number, this.small), this.spark.node);
  }

  show(answer, history) {
    const value = this.value(answer, history);
    say(this.number, this.write(value));
    say(this.small, this.note(answer, history));
    this.spark.add(value ?? 0, this.whole(answer));
    this.node.classList.toggle("bad", this.isBad && value > 0);
  }
}
