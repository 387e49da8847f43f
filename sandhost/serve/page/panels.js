// What only an operator sees beside the tables: pressure, requests and sessions, the collector.

import { cycles, levels, LEVELS } from "./charts.js";
import { el, find, say } from "./dom.js";
import { bytes, count, many, name, time } from "./words.js";

const MEANING = {
  calm: "Memory is not short.",
  evict: "What is only kept for speed goes back.",
  refuse: "Tenants above their share start and grow no guests.",
  release: "Nobody starts guests; all that is free goes back.",
  end: "Guests of the tenant furthest above its share are ended.",
};
const SPAN_S = 600;
const CYCLES = 30;

/** How wide a drawing is to be, so that its words have the size of others. */
const wideOf = (node) => Math.max(node.clientWidth, 260);

export function showPressure({ view, level }) {
  const { pressure } = view;
  const [dot, word, meaning] = find("level").children;
  dot.className = `l-${LEVELS.includes(level) ? level : "calm"}`;
  say(word, level);
  say(meaning, MEANING[level] ?? "");
  if (!pressure) return;
  find("levels").replaceChildren(levels(pressure.changes, level, SPAN_S, wideOf(find("levels"))));
  const rows = pressure.opinions.map((one) => el("li", {},
    el("b", {}, name(one.signal)), el("span", {}, one.why ? name(one.why) : "says nothing")));
  const ended = pressure.guests_ended
    ? el("p", { class: "problem" }, `${many(pressure.guests_ended, "guest")} ended for memory so far.`) : null;
  const limit = pressure.limit_bytes == null
    ? "The process has no limit of memory: see the setting process_limit."
    : `The process may have ${bytes(pressure.limit_bytes)} resident.`;
  find("signals").replaceChildren(el("p", { class: "note" }, limit), el("ul", { class: "signals" }, ...rows),
    ...(ended ? [ended] : []));
}

const WHY = {
  line: "would have waited too long",
  late: "have waited too long",
  deadline: "had no time left",
  pressure: "memory was short",
};

export function showRequests({ requests, sessions, view: { figures: host } }) {
  const [requestList, refusedList, sessionList] = find("requests").querySelectorAll("dl");
  figures(requestList, [
    ["in service", requests.in_flight, ` of ${count(requests.limit)}`],
    ["waiting", requests.waiting],
    ["admitted so far", requests.admitted],
    ["typical time in service", requests.typical_s, "", time],
    ["without load", requests.least_s, "", time],
  ]);
  figures(refusedList, [
    ...Object.entries(WHY).map(([why, words]) => [words, requests.refused[why] ?? 0]),
    ["a tenant’s quota", host.quota_refusals],
  ]);
  figures(sessionList, [
    ["open", sessions.live],
    ["with a call in them", sessions.in_use],
    ["opened so far", sessions.opened],
    ["ended for want of use", sessions.idled],
    ["waiting calls", sessions.waiting],
  ]);
}

function figures(list, rows) {
  if (list.children.length !== rows.length) {
    list.replaceChildren(...rows.map(() => el("div", {}, el("dt"), el("dd"))));
  }
  rows.forEach(([words, value, more = "", write = count], at) => {
    const [title, number] = list.children[at].children;
    say(title, words);
    say(number, `${write(value)}${more}`);
    number.className = value ? "" : "zero";
  });
}

export function showCollector({ view: { collector } }) {
  const panel = find("collector");
  const [note, chart] = [panel.querySelector(".note"), panel.querySelector(".chart")];
  if (!collector) {
    say(note, "No guest has been given an object of the host yet, so there is nothing to collect.");
    return;
  }
  const goal = collector.goal_bytes == null ? "no goal" : `the goal is ${bytes(collector.goal_bytes)}`;
  say(note, [
    `${bytes(collector.live_bytes)} live, ${goal}`,
    `${collector.phase} now`,
    `${many(collector.cycles, "cycle")} so far`,
    `${bytes(collector.swept_bytes)} collected`,
    `longest stop ${time(collector.longest_stop_ns / 1e9)}`,
  ].join(" · "));
  chart.replaceChildren(...(collector.history.length ? [cycles(collector.history.slice(-CYCLES), wideOf(chart)), cyclesKey()] : []));
}

const cyclesKey = () => el("ul", { class: "key" },
  el("li", {}, el("i", { class: "before" }), "live when it began, or at its peak"),
  el("li", {}, el("i", { class: "after" }), "live after it"),
  el("li", {}, el("i", { class: "goal" }), "goal"));
