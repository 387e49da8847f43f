// Asking the service, with the token as a header. The token stays in this tab: it is in no URL and no cookie.

const KEEP = "sandhost.token";
const PATIENCE_MS = 15_000;

let token = sessionStorage.getItem(KEEP);

/** The service has answered, and not with what was asked for. `problem` is as RFC 9457 has it. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `status ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

/** There was no answer. */
export class Unreachable extends Error {}

export const hasToken = () => token !== null;

export function useToken(text) {
  token = text;
  sessionStorage.setItem(KEEP, text);
}

export function forgetToken() {
  token = null;
  sessionStorage.removeItem(KEEP);
}

/** Return what the service answers: { text, status }. Raises Refused and Unreachable. */
export async function ask(path, { method = "GET", body = null, patience_ms = PATIENCE_MS } = {}) {
  let response;
  let text;
  try {
    response = await fetch(path, {
      method,
      body,
      headers: { Authorization: `Bearer ${token}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: patience_ms ? AbortSignal.timeout(patience_ms) : null,
    });
    text = await response.text();
  } catch {
    throw new Unreachable("the service does not answer");
  }
  if (!response.ok) throw new Refused(response.status, asProblem(text));
  return text;
}

export const get = async (path) => JSON.parse(await ask(path));

function asProblem(text) {
  try {
    const problem = JSON.parse(text);
    return problem !== null && typeof problem === "object" ? problem : {};
  } catch {
    return {}; // something before the service has answered
  }
}
