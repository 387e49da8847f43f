// The last answers of the service, for what is shown as a rate or as a time of now.

const KEPT_S = 30;
const RATE_S = 6;

export class History {
  constructor() {
    this.kept = []; // oldest first, none older than KEPT_S before the newest
  }

  /** Add an answer; return whether it is a new one: consoles that ask together share one. */
  add(answer) {
    const last = this.kept.at(-1);
    if (last?.taken_s === answer.taken_s) return false;
    if (last && answer.taken_s < last.taken_s) this.kept = [];
    this.kept.push(answer);
    while (this.kept[0].taken_s < answer.taken_s - KEPT_S) this.kept.shift();
    return true;
  }

  /** Return by how much a counter grew in a second; null when that is not known. */
  rate(read) {
    const now = this.kept.at(-1);
    const before = this.kept.find((one) => one.taken_s >= now.taken_s - RATE_S);
    const seconds = now.taken_s - before.taken_s;
    const [last, first] = [read(now), read(before)];
    return seconds > 0 && first != null && last >= first ? (last - first) / seconds : null;
  }

  /** Return the answer of KEPT_S ago, or the first one since; null when there is but one. */
  get before() {
    return this.kept.length > 1 ? this.kept[0] : null;
  }
}

/** Return what happened between two readings of a histogram. */
export function since(latency, before) {
  const counts = new Map(before.buckets);
  const buckets = latency.buckets
    .map(([value, times]) => [value, times - (counts.get(value) ?? 0)])
    .filter(([, times]) => times > 0);
  return { total: latency.total - before.total, max_ns: latency.max_ns, buckets };
}

/** Return the seconds that `percent` of the operations did not exceed; null if there were none. */
export function percentile({ total, max_ns, buckets }, percent) {
  if (!total) return null;
  let passed = 0;
  for (const [value, times] of buckets) {
    passed += times;
    if (passed >= (total * percent) / 100) return Math.min(value, max_ns) / 1e9;
  }
  return max_ns / 1e9;
}
