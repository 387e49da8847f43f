// What wasm takes and returns, as people type it and as the API's JSON has it; see values.py.

const BITS = { i32: 32n, i64: 64n };
const WORDS = ["NaN", "Infinity", "-Infinity"];

/** Return the JSON of an argument that was typed. Raises Error with what is wrong with it, for people. */
export function asJson(kind, text) {
  const typed = text.trim();
  if (kind in BITS) return whole(typed, BITS[kind], kind);
  if (kind === "v128") {
    if (/^[0-9a-fA-F]{32}$/.test(typed)) return JSON.stringify(typed);
    throw new Error("32 hexadecimal digits, the byte of the lowest address first");
  }
  if (WORDS.includes(typed)) return JSON.stringify(typed);
  if (typed !== "" && Number.isFinite(Number(typed))) return String(Number(typed));
  throw new Error("a number, NaN, Infinity or -Infinity");
}

function whole(typed, bits, kind) {
  const parts = /^([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)$/.exec(typed);
  if (parts === null || typed.length > 40) throw new Error("a whole number");
  const value = BigInt(parts[2]) * (parts[1] === "-" ? -1n : 1n);
  if (value < -(1n << (bits - 1n)) || value >= 1n << bits) throw new Error(`too large for ${kind}`);
  return value.toString();
}

/** Return the results in the service's own digits: a number of JavaScript cannot hold every i64. */
export function resultsOf(text) {
  const exact = (_, value, context) => (typeof value === "number" ? (context?.source ?? String(value)) : value);
  return JSON.parse(text, exact).results.map(String);
}
