// Numbers, sizes and times as people read them; the same as units.py, so that page and command line agree.

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const NAME_MOST = 200;
const LINES_MOST = 4000;

function threeDigits(value) {
  const text = value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

export function bytes(size) {
  if (size == null) return "–";
  let power = 0;
  let value = size;
  while (value >= 1023.5 && power < BINARY.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${threeDigits(value)} ${BINARY[power]}`;
}

export function time(seconds) {
  if (seconds == null) return "–";
  for (const [scale, unit] of [[1e-9, "ns"], [1e-6, "µs"], [1e-3, "ms"]]) {
    if (seconds < 999.5 * scale) return `${threeDigits(seconds / scale)} ${unit}`;
  }
  if (seconds < 59.95) return `${threeDigits(seconds)} s`;
  const whole = Math.round(seconds);
  return whole < 3600
    ? `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`
    : `${Math.floor(whole / 3600)} h${whole % 3600 >= 60 ? ` ${Math.floor((whole % 3600) / 60)} min` : ""}`;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (number) => (number == null ? "–" : grouped.format(number));

/** A number for each second. */
export function rate(number) {
  if (number == null) return "–";
  return number >= 100 ? count(number) : threeDigits(number);
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour12: false });

export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

/** What a tenant has named, without what would change how the text around it reads; <bdi> does the rest. */
export function name(text, most = NAME_MOST) {
  const cut = text.length > most ? `${text.slice(0, most - 1)}…` : text;
  return cut.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, (character) =>
    `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** The same of several lines. */
export const lines = (text) => text.slice(0, LINES_MOST).split("\n").map((line) => name(line, LINES_MOST)).join("\n");
