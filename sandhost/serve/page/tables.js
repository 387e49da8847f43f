// The tables: tenants, plugins with their versions, and how long things took.

import { el, find, say } from "./dom.js";
import { percentile, since } from "./history.js";
import { Table } from "./table.js";
import { bytes, clock, count, lines, many, name, rate, time } from "./words.js";

/** A column of numbers. of(item): what the number is part of; isBad: whether more than 0 is bad. */
function numbers(title, read, { write = count, of = null, isBad = false } = {}) {
  return {
    title,
    sort: (item) => read(item) ?? -1,
    make(cell) {
      const [number, small] = [el("span"), el("small")];
      cell.append(number, small);
      return (item) => {
        const value = read(item);
        const limit = of?.(item);
        say(number, write(value));
        say(small, limit == null ? "" : ` of ${write(limit)}`);
        cell.className = isBad && value > 0 ? "bad" : value ? "" : "zero";
      };
    },
  };
}

// ---- tenants ----

export class Tenants {
  constructor({ isAdmin }) {
    this.isAdmin = isAdmin;
    this.history = null;
    say(find("tenants-title"), isAdmin ? "Tenants" : "Quotas");
    const columns = [
      { title: "Tenant", text: true, sort: (one) => one.name, make: (cell, one) => {
        cell.append(el("bdi", {}, name(one.name)));
        return () => {};
      } },
      memory,
      numbers("Guests", (one) => one.guests ?? 0, { of: (one) => one.quotas.guests }),
      numbers("Sessions", (one) => one.sessions),
      numbers("CPUs", (one) => this.cpus(one), { write: rate, of: (one) => one.quotas.cpus }),
      numbers("Calls a second", (one) => this.rate(one, "calls"), { write: rate }),
      numbers("Refused", (one) => one.refusals ?? 0, { isBad: true }),
    ];
    if (isAdmin) {
      columns.splice(2, 0,
        numbers("Resident", (one) => one.resident_bytes ?? 0, { write: bytes }),
        numbers("Fair share", (one) => one.share_bytes, { write: bytes }),
        numbers("Weight", (one) => one.quotas.weight ?? 1, { write: rate }));
    }
    this.table = new Table(find("tenants").querySelector(".scroll"), columns, { key: (one) => one.name, sorted: 1 });
  }

  show(answer, history) {
    this.history = history;
    const all = answer.tenants_in_all;
    const left = all > answer.tenants.length ? `The ${count(answer.tenants.length)} that hold most, of ${count(all)}. ` : "";
    say(find("tenants").querySelector(".note"),
      `${left}The bar is memory against the limit${this.isAdmin ? ", or without one against the fair share" : ""}. CPU time is counted where there is a quota of it.`);
    this.table.show(answer.tenants);
  }

  rate(tenant, field) {
    return this.history.rate((answer) => named(answer).get(tenant.name)?.[field] ?? 0);
  }

  cpus(tenant) {
    return tenant.quotas.cpus == null ? null : (this.rate(tenant, "cpu_ns") ?? 0) / 1e9;
  }
}

const byName = new WeakMap();

function named(answer) {
  if (!byName.has(answer)) byName.set(answer, new Map(answer.tenants.map((one) => [one.name, one])));
  return byName.get(answer);
}

const held = numbers("Memory", (one) => one.memory_bytes ?? 0, { write: bytes, of: (one) => one.quotas.memory_limit });

/** Memory, with a bar: of the limit, or where there is none of the fair share. */
const memory = {
  ...held,
  make(cell) {
    const bar = el("i");
    const meter = el("span", { class: "meter", "aria-hidden": "true" }, bar);
    const update = held.make(cell);
    cell.append(meter);
    return (one) => {
      update(one);
      const whole = one.quotas.memory_limit ?? one.share_bytes;
      const size = one.memory_bytes ?? 0;
      meter.classList.toggle("none", whole == null);
      bar.style.width = `${whole ? Math.min((100 * size) / whole, 100).toFixed(1) : 0}%`;
      bar.className = one.share_bytes != null && size > one.share_bytes ? "over" : "";
    };
  },
};

// ---- plugins ----

const keyOf = (plugin) => `${plugin.tenant}/${plugin.plugin}`;
const sum = (plugin, field) => plugin.versions.reduce((all, { running }) => all + (running?.[field] ?? 0), 0);

export class Plugins {
  constructor({ isAdmin }) {
    this.table = new Table(find("plugins").querySelector(".scroll"), [
      { title: "Plugin", text: true, sort: keyOf, make: (cell, plugin) => {
        const button = el("button", { type: "button", class: "fold", "aria-expanded": "false" },
          isAdmin ? el("bdi", { class: "soft" }, `${name(plugin.tenant)} / `) : null,
          el("bdi", {}, name(plugin.plugin)));
        button.addEventListener("click", () => {
          const open = button.getAttribute("aria-expanded") === "false";
          button.setAttribute("aria-expanded", String(open));
          cell.closest("tbody").querySelector(".more").hidden = !open;
        });
        cell.append(button);
        return () => {};
      } },
      { title: "Newest", text: true, sort: (one) => one.versions[0]?.version ?? 0, make: newest },
      { title: "Aliases", text: true, sort: (one) => Object.keys(one.aliases).join(), make: aliases },
      numbers("Guests", (one) => sum(one, "guests")),
      numbers("Calls", (one) => sum(one, "calls")),
      numbers("Traps", (one) => sum(one, "traps"), { isBad: true }),
    ], { key: keyOf, more: versions });
  }

  show(answer) {
    const all = answer.plugins_in_all;
    say(find("plugins").querySelector(".note"), all === 0
      ? "None has been deployed yet."
      : all > answer.plugins.length ? `${count(answer.plugins.length)} of ${count(all)} are shown.` : "Calls of guests that have ended, since the version was loaded.");
    find("plugins").querySelector(".scroll").hidden = all === 0;
    this.table.show(answer.plugins);
  }
}

function newest(cell) {
  const [dot, text] = [el("i"), el("span")];
  cell.append(el("span", { class: "state" }, dot, text));
  return ({ versions: [version] }) => {
    dot.className = version?.state ?? "";
    say(text, version ? `${version.version}, ${version.state}` : "removed");
  };
}

function aliases(cell) {
  return (plugin) => {
    const words = Object.entries(plugin.aliases).map(([alias, number]) => `${name(alias)} → ${number}`);
    say(cell, words.join(", ") || "–");
    cell.classList.toggle("zero", words.length === 0);
  };
}

function versions(plugin) {
  const list = el("ul");
  const row = el("tr", { class: "more", hidden: true }, el("td", { colspan: 6 }, list));
  let shown = "";
  return {
    node: row,
    update(now) {
      const state = JSON.stringify(now.versions);
      if (state === shown) return;
      shown = state;
      const left = now.versions_in_all - now.versions.length;
      list.replaceChildren(...now.versions.map(versionLine),
        ...(left > 0 ? [el("li", { class: "note" }, `and ${many(left, "older one")}`)] : []));
    },
  };
}

function versionLine({ version, state, error, bytes: size, created, running }) {
  const words = [bytes(size), `deployed ${new Date(created * 1000).toLocaleDateString()} ${clock(created)}`];
  if (running) words.push(many(running.calls, "call"), many(running.guests, "guest"));
  return el("li", {},
    el("span", { class: "state" }, el("i", { class: state }), `${version}, ${state}`),
    el("span", { class: "note" }, words.join(" · ")),
    error ? el("p", { class: "problem" }, el("bdi", {}, lines(error))) : null);
}

// ---- how long things took ----

const OPERATIONS = { call: "Call of a function", spawn: "Start of a guest", close: "End of a guest" };

export class Latency {
  constructor() {
    const column = (title, read, write = time) => numbers(title, read, { write });
    this.table = new Table(find("latency").querySelector(".scroll"), [
      { title: "Of guests", text: true, sort: (one) => one.at, make: (cell, one) => {
        cell.append(OPERATIONS[one.operation]);
        return () => {};
      } },
      column("p50", (one) => percentile(one.recent, 50)),
      column("p90", (one) => percentile(one.recent, 90)),
      column("p99", (one) => percentile(one.recent, 99)),
      column("times", (one) => one.recent.total, count),
      column("p99 ever", (one) => percentile(one.ever, 99)),
      column("longest", (one) => (one.ever.total ? one.ever.max_ns / 1e9 : null)),
    ], { key: (one) => one.operation });
  }

  show({ view }, history) {
    const before = history.before?.view.latency;
    const none = { total: 0, max_ns: 0, buckets: [] };
    this.table.show(Object.keys(OPERATIONS).map((operation, at) => {
      const ever = view.latency[operation];
      return { at, operation, ever, recent: before ? since(ever, before[operation]) : none };
    }));
  }
}
