// The console: signs in, asks the service again and again, and shows what it says.
//
//   door ── a token that is good ──► board: asks every EVERY_MS ── 401 ──► door
//                                      │ no answer: says so, keeps what it has, tries again

import { forgetToken, get, hasToken, Refused, useToken } from "./api.js";
import { find, say, show } from "./dom.js";
import { HeatMap } from "./heat.js";
import { History } from "./history.js";
import { Form } from "./invoke.js";
import { showCollector, showPressure, showRequests } from "./panels.js";
import { Latency, Plugins, Tenants } from "./tables.js";
import { Tiles } from "./tiles.js";
import { clock, name } from "./words.js";

const EVERY_MS = 2000; // the service looks once a second at the most
const AGAIN_MS = [1000, 2000, 4000, 8000];
const GONE = "The token is not valid any more: it has expired or was revoked. Sign in with another one.";
const NO_TOKEN = "This is no valid token, or it has expired.";

let board = null; // while somebody is signed in
let heat = null; // one for the page, as it listens
let timer = 0;

class Board {
  constructor(who) {
    this.isAdmin = who.scopes.includes("admin");
    this.history = new History();
    this.failed = 0;
    document.body.classList.toggle("is-admin", this.isAdmin);
    const parts = [new Tiles(this), new Tenants(this), new Plugins(this), new Form(who)];
    if (this.isAdmin) {
      heat ??= new HeatMap();
      parts.push(new Latency(), { show: ({ view }) => heat.show(view.slots) },
        { show: showPressure }, { show: showRequests }, { show: showCollector });
    }
    this.parts = parts;
    say(find("whose"), name(who.tenant));
  }

  show(answer) {
    this.failed = 0;
    const short = !this.isAdmin && answer.level !== "calm";
    notice(answer.stopping ? "The service is stopping: it takes no new requests."
      : short ? "Memory is short on this machine: new guests may be refused for a while." : "");
    if (!this.history.add(answer)) return;
    for (const part of this.parts) part.show(answer, this.history);
    const process = answer.view?.process;
    say(find("foot"), [
      `As of ${clock(answer.taken_s)}`,
      ...(process ? [`sandhost ${process.sandhost}`, `Python ${process.python}`, `${process.cores} processors`, `process ${process.pid}`] : []),
    ].join(" · "));
  }

  /** There was no answer, or none that helps: what is shown is of before. */
  lost(error) {
    const last = this.history.kept.at(-1);
    const from = last ? ` What you see is from ${clock(last.taken_s)}.` : "";
    const what = error instanceof Refused ? `The service answers with an error: ${error.message}.` : "The connection to the service is lost.";
    notice(`${what}${from} Trying again …`);
    this.failed += 1;
  }

  get wait_ms() {
    return this.failed ? AGAIN_MS[Math.min(this.failed, AGAIN_MS.length) - 1] : EVERY_MS;
  }
}

async function look() {
  clearTimeout(timer);
  const mine = board;
  if (mine === null || document.hidden) return; // it goes on when it can be seen
  try {
    const answer = await get("console/view");
    if (mine !== board) return;
    mine.show(answer);
  } catch (error) {
    if (mine !== board) return;
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      leave(GONE);
      return;
    }
    mine.lost(error);
  }
  linked(mine.failed === 0);
  clearTimeout(timer);
  timer = setTimeout(look, mine.wait_ms);
}

function linked(live) {
  find("link").classList.toggle("lost", !live);
  find("board").classList.toggle("old", !live);
  say(find("link").querySelector("span"), live ? "Live" : "Connection lost");
}

function notice(text) {
  say(find("notice"), text);
  show(find("notice"), text !== "");
}

/** Come in with the token that is kept. */
async function enter() {
  const who = await get("console/who");
  board = new Board(who);
  await look();
  if (board === null) return;
  for (const id of ["board", "sections", "session"]) show(find(id), true);
  show(find("door"), false);
  find("main").focus({ preventScroll: true });
  window.dispatchEvent(new Event("resize"));
}

function leave(why = "") {
  board = null;
  clearTimeout(timer);
  forgetToken();
  for (const id of ["board", "sections", "session"]) show(find(id), false);
  notice("");
  say(find("foot"), "");
  openDoor(why);
}

function openDoor(why) {
  show(find("door"), true);
  say(find("token-problem"), why);
  find("token").value = "";
  find("token").focus();
}

const reason = (error) =>
  error instanceof Refused
    ? error.status === 401 ? NO_TOKEN : `${name(error.message)}.`
    : "The service does not answer. Try again in a moment.";

find("door").addEventListener("submit", async (event) => {
  event.preventDefault();
  say(find("token-problem"), "");
  const typed = find("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(typed)) {
    openDoor(NO_TOKEN); // no header can hold it
    return;
  }
  useToken(typed);
  try {
    await enter();
  } catch (error) {
    leave(reason(error));
  }
});
find("leave").addEventListener("click", () => leave());
document.addEventListener("visibilitychange", look);

/** Go on after the page was loaded anew, also while the service does not answer. */
async function resume() {
  try {
    await enter();
    notice("");
  } catch (error) {
    if (error instanceof Refused) {
      leave(error.status === 401 ? GONE : reason(error));
    } else {
      notice("The service does not answer. Trying again …");
      setTimeout(resume, EVERY_MS);
    }
  }
}

if (hasToken()) resume();
else openDoor("");
