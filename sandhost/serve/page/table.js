// Tables that stay where they are while their numbers change: what is focused, selected or unfolded remains so.

import { el } from "./dom.js";

/** One element for each item, found again by the item's key, in the items' order, after a first element. */
export class Rows {
  constructor(parent, make, head = null) {
    this.parent = parent;
    this.make = make; // (item) -> { node, update(item) }
    this.head = head;
    this.rows = new Map();
  }

  show(items, key) {
    const before = this.rows;
    const now = items.map((item) => [key(item), item]);
    this.rows = new Map(now.map(([name, item]) => [name, before.get(name) ?? this.make(item)]));
    for (const [name, { node }] of before) if (!this.rows.has(name)) node.remove();
    let next = this.head ? this.head.nextElementSibling : this.parent.firstElementChild;
    for (const [name, item] of now) {
      const row = this.rows.get(name);
      row.update(item);
      if (row.node === next) next = next.nextElementSibling;
      else this.parent.insertBefore(row.node, next);
    }
  }
}

/**
 * A table whose head sorts it.
 *
 * columns: { title, sort(item), make(cell, item) -> update(item), text: whether it is no number }
 * more(item): { node, update(item) } of a second row, or nothing
 */
export class Table {
  constructor(parent, columns, { key, sorted = 0, more = null }) {
    Object.assign(this, { columns, key, more, at: sorted, down: !columns[sorted].text, items: [] });
    this.heads = columns.map(({ title, text }, at) => {
      const button = el("button", { type: "button" }, title);
      button.addEventListener("click", () => this.sortBy(at));
      return el("th", { scope: "col", class: text && "text" }, button);
    });
    const head = el("thead", {}, el("tr", {}, ...this.heads));
    const table = el("table", {}, head);
    this.rows = new Rows(table, (item) => this.row(item), head);
    parent.replaceChildren(table);
  }

  row(item) {
    const cells = this.columns.map(({ text }, at) =>
      at ? el("td", { class: text && "text" }) : el("th", { scope: "row", class: "text" }));
    const updates = cells.map((cell, at) => this.columns[at].make(cell, item));
    const below = this.more?.(item);
    if (below) updates.push(below.update);
    const node = el("tbody", {}, el("tr", {}, ...cells), below?.node);
    return { node, update: (now) => updates.forEach((update) => update(now)) };
  }

  sortBy(at) {
    this.down = at === this.at ? !this.down : !this.columns[at].text;
    this.at = at;
    this.show(this.items);
  }

  show(items) {
    this.items = items;
    const { sort } = this.columns[this.at];
    const sign = this.down ? -1 : 1;
    const compare = (x, y) => (x < y ? -1 : x > y ? 1 : 0);
    const order = [...items].sort((a, b) =>
      sign * compare(sort(a), sort(b)) || compare(this.key(a), this.key(b)));
    this.heads.forEach((head, at) => {
      if (at === this.at) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.rows.show(order, this.key);
  }
}
