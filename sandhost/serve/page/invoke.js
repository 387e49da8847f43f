// The form that calls a function of one's own plugins, by the same API that programs use.

import { ask, get, Refused } from "./api.js";
import { el, find, say, show } from "./dom.js";
import { asJson, resultsOf } from "./numbers.js";
import { lines, name, time } from "./words.js";

const TITLES = {
  "guest-failed": "The plugin failed",
  "invalid": "The call cannot be meant as it stands",
  "deadline-passed": "The time of the call was over",
  "too-many": "Too much at once",
  "missing": "It is not there",
  "not-ready": "This version is not ready",
  "denied": "The token may not do this",
  "unknown": "The token is not valid any more",
  "unavailable": "The service takes no calls just now",
};

const signature = ({ params, results }) =>
  `(${params.join(", ")}) → ${results.length === 1 ? results[0] : `(${results.join(", ")})`}`;

export class Form {
  constructor(who) {
    this.who = who;
    this.mayCall = who.scopes.includes("invoke");
    this.plugins = [];
    this.of = ""; // which plugin and version `functions` are of
    this.functions = [];
    [this.plugin, this.ref, this.function] = ["plugin", "ref", "function"].map(find);
    this.plugin.onchange = () => this.choose();
    this.ref.onchange = () => this.choose();
    this.function.onchange = () => this.ask();
    find("invoke").onsubmit = (event) => {
      event.preventDefault();
      this.call();
    };
    find("result").replaceChildren();
    for (const select of [this.plugin, this.ref, this.function]) select.replaceChildren();
    find("arguments").replaceChildren();
  }

  show({ plugins }) {
    this.plugins = plugins.filter((one) => one.tenant === this.who.tenant && one.latest !== null);
    const none = `${name(this.who.tenant)} has no plugin that is ready.`;
    say(find("form-note"), !this.mayCall
      ? "This token has not the scope “invoke”, so it may not call functions."
      : this.plugins.length ? `As ${name(this.who.tenant)}, each call in a fresh guest.` : none);
    show(find("invoke"), this.mayCall && this.plugins.length > 0);
    if (!this.mayCall || !this.plugins.length) return;
    options(this.plugin, this.plugins.map((one) => [one.plugin, name(one.plugin)]));
    this.choose();
  }

  /** Offer the versions of the plugin that is chosen, and get the functions of the version. */
  async choose() {
    const plugin = this.plugins.find((one) => one.plugin === this.plugin.value);
    const ready = plugin.versions.filter(({ state }) => state === "ready").map(({ version }) => version);
    options(this.ref, [
      ["latest", `latest, ${plugin.latest}`],
      ...Object.entries(plugin.aliases).map(([alias, number]) => [alias, `${name(alias)}, ${number}`]),
      ...ready.map((number) => [String(number), String(number)]),
    ]);
    const ref = this.ref.value;
    const number = ref === "latest" ? plugin.latest : (plugin.aliases[ref] ?? Number(ref));
    const of = `${plugin.plugin}@${number}`;
    if (of === this.of) return;
    this.of = of;
    try {
      const path = `console/functions/${encodeURIComponent(plugin.plugin)}?ref=${number}`;
      const { functions } = await get(path);
      if (of !== this.of) return; // another was chosen meanwhile
      this.functions = functions.filter((one) => one.has_json);
    } catch (error) {
      if (of !== this.of) return;
      this.of = ""; // the next answer tries again
      this.functions = [];
      find("result").replaceChildren(failure(error));
    }
    options(this.function, this.functions.map((one) => [one.name, name(one.name)]));
    this.ask();
  }

  /** Have a field for each argument of the function that is chosen. */
  ask() {
    const chosen = this.functions.find((one) => one.name === this.function.value);
    say(find("signature"), chosen ? signature(chosen) : "No function takes and returns numbers alone.");
    show(find("call"), Boolean(chosen));
    const fields = find("arguments");
    const wanted = `${this.of} ${chosen?.name ?? ""}`;
    if (fields.dataset.of === wanted) return;
    fields.dataset.of = wanted;
    fields.replaceChildren(...(chosen?.params ?? []).map((kind, at) => {
      const id = `argument-${at}`;
      const input = el("input", {
        id, name: id, inputmode: kind === "v128" ? "text" : "decimal", autocomplete: "off", spellcheck: "false",
        "aria-describedby": `${id}-problem`, maxlength: 64,
      });
      return el("div", {}, el("label", { for: id }, `Argument ${at + 1} `, el("small", {}, kind)),
        input, el("p", { class: "problem", id: `${id}-problem` }));
    }));
  }

  async call() {
    const { name: called, params } = this.functions.find((one) => one.name === this.function.value);
    const typed = this.typed(params);
    if (typed === null || this.calling) return;
    const path = `v1/plugins/${encodeURIComponent(this.plugin.value)}/call/${encodeURIComponent(called)}?ref=${encodeURIComponent(this.ref.value)}`;
    this.working(true);
    const began = performance.now();
    try {
      // As long as it takes: the version's own limit ends it.
      const text = await ask(path, { method: "POST", body: `{"arguments":[${typed.join(",")}]}`, patience_ms: 0 });
      const took = (performance.now() - began) / 1000;
      find("result").replaceChildren(success(called, typed, resultsOf(text), took));
    } catch (error) {
      find("result").replaceChildren(failure(error));
    }
    this.working(false);
  }

  working(calling) {
    this.calling = calling;
    find("call").setAttribute("aria-disabled", String(calling));
    say(find("call"), calling ? "Calling …" : "Call");
  }

  /** Return the arguments in JSON; null when there is something wrong with one, which then has the focus. */
  typed(params) {
    let wrong = null;
    const texts = params.map((kind, at) => {
      const field = find(`argument-${at}`);
      let [text, problem] = ["", ""];
      try {
        text = asJson(kind, field.value);
      } catch (error) {
        problem = `Give ${error.message}.`.replace("Give too", "Too");
        wrong ??= field;
      }
      say(find(`argument-${at}-problem`), problem);
      field.setAttribute("aria-invalid", String(problem !== ""));
      return text;
    });
    wrong?.focus();
    return wrong ? null : texts;
  }
}

/** Have a select offer these [value, words], and keep what is chosen if it is still there. */
function options(select, wanted) {
  const now = [...select.options].map((option) => [option.value, option.label]);
  if (JSON.stringify(now) === JSON.stringify(wanted)) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map(([value, words]) => el("option", { value, label: words }, words)));
  if (wanted.some(([value]) => value === chosen)) select.value = chosen;
}

function success(called, typed, results, took_s) {
  const words = results.length ? results.join(", ") : "nothing";
  return el("div", { class: "answer" },
    el("p", {}, el("bdi", {}, `${name(called)}(${typed.join(", ")})`), " = ", el("b", { id: "value" }, words)),
    el("p", { class: "note" }, `${time(took_s)}, with the way there and back`));
}

function failure(error) {
  const problem = error instanceof Refused ? error.problem : {};
  const frames = Array.isArray(problem.frames) ? problem.frames : [];
  const detail = frames.length ? error.message.split("\n")[0] : error.message; // the rest is the frames
  const again = problem.retry_after_s ? ` Try again in ${time(problem.retry_after_s)}.` : "";
  return el("div", { class: "answer failed" },
    el("p", {}, el("b", {}, TITLES[problem.title] ?? (error instanceof Refused ? "The service could not do it" : "No answer"))),
    el("p", { class: "detail" }, el("bdi", {}, lines(detail)), again),
    frames.length ? el("ol", { class: "frames", "aria-label": "Where it was" },
      ...frames.map((frame) => el("li", {}, el("bdi", {}, name(String(frame)))))) : null);
}
