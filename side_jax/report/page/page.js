// Sorts the tables, and sorts, filters and turns the pages of the gallery. All text goes in as text, never as markup.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const count = new Intl.NumberFormat("en");
  const words = new Intl.Collator("en", { numeric: true });

  // Values that are missing stand last, whichever way the others run.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? words.compare(a, b) : a - b);
  };

  function sortTable(table, head, column) {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const rows = [...table.tBodies[0].rows];
    const numeric = !head.classList.contains("text") || rows.some((row) => "sort" in row.cells[column].dataset);
    const key = ({ cells: { [column]: cell } }) => {
      if (!numeric) return cell.textContent;
      return "sort" in cell.dataset ? Number(cell.dataset.sort) : null;
    };
    rows.sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1));
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    byId("said").textContent = `Sorted by ${head.textContent}, ${ascending ? "ascending" : "descending"}.`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sortTable(table, head, column));
    });
  }

  function gallery({ closer, entries }) {
    const fields = ["sort", "order", "attack", "cluster", "find", "size", "matched", "large"].map(byId);
    const [sort, order, attack, cluster, find, size, matched, large] = fields;
    let page = 0;

    function chosen() {
      const text = find.value.trim().toLowerCase();
      const found = entries.filter(
        (entry) =>
          (attack.value === "" || entry.attack === attack.value) &&
          (cluster.value === "" || String(entry.cluster ?? "none") === cluster.value) &&
          (!matched.checked || entry.matched) &&
          entry.ids.some((id) => id.toLowerCase().includes(text)),
      );
      if (sort.value === "") return found;
      const i = Number(sort.value);
      const sign = (closer[i] === "smaller") === (order.value === "closest") ? 1 : -1;
      return found.sort((a, b) => compare(a.values[i], b.values[i], sign));
    }

    // The pairs of each member, in the order of the first of each.
    function grouped(found) {
      const groups = new Map();
      for (const entry of found) {
        if (!groups.has(entry.member)) groups.set(entry.member, []);
        groups.get(entry.member).push(entry);
      }
      return [...groups.values()];
    }

    function card([entry, ...others]) {
      const item = byId("card").content.cloneNode(true);
      const slot = (name) => item.querySelector(`[data-fill=${name}]`);
      item.querySelector("li").classList.toggle("matched", entry.matched);
      Object.assign(item.querySelector("img"), { src: entry.picture, alt: entry.alt });
      slot("title").textContent = entry.title;
      slot("match").textContent = entry.matched ? "Match" : "";
      for (const label of entry.tiles) {
        const tile = document.createElement("span");
        tile.textContent = label;
        slot("tiles").append(tile);
      }
      for (const name of ["facts", "scores"]) {
        for (const [label, text] of entry[name]) {
          const row = document.createElement("div");
          row.append(document.createElement("dt"), document.createElement("dd"));
          row.firstChild.textContent = label;
          row.lastChild.textContent = text;
          slot(name).append(row);
        }
      }
      const more = slot("more");
      more.hidden = others.length === 0;
      more.querySelector("summary").textContent = `${others.length} more of this member`;
      for (const other of others) {
        const one = document.createElement("figure");
        one.append(document.createElement("img"), document.createElement("figcaption"));
        Object.assign(one.firstChild, { className: "strip", src: other.picture, alt: other.alt, loading: "lazy" });
        one.lastChild.textContent = other.line;
        more.append(one);
      }
      return item;
    }

    function draw() {
      const found = chosen();
      const groups = grouped(found);
      const step = Number(size.value) || Math.max(1, groups.length);
      const pages = Math.max(1, Math.ceil(groups.length / step));
      const shown = groups.slice(page * step, (page + 1) * step);
      const range = shown.length < groups.length ? `, shown: ${page * step + 1} to ${page * step + shown.length}` : "";
      const members = groups.length < found.length ? `, members: ${count.format(groups.length)}` : "";
      byId("count").textContent =
        `${count.format(found.length)} of ${count.format(entries.length)} pairs${members}${range}`;
      byId("where").textContent = `Page ${page + 1} of ${pages}`;
      byId("turn").hidden = pages === 1;
      // Not `disabled`: a button that goes away under the finger loses the keyboard's place.
      byId("previous").setAttribute("aria-disabled", page === 0);
      byId("next").setAttribute("aria-disabled", page === pages - 1);
      order.disabled = sort.value === "";
      byId("list").classList.toggle("large", large.checked);
      byId("list").replaceChildren(...shown.map(card));
    }

    function turn(by) {
      if (byId(by < 0 ? "previous" : "next").getAttribute("aria-disabled") === "true") return;
      page += by;
      draw();
      byId("list").focus();
    }

    for (const field of fields) {
      field.addEventListener("input", () => {
        page = 0;
        draw();
      });
    }
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    byId("clear").addEventListener("click", () => {
      for (const field of fields) {
        if (field.type === "checkbox") field.checked = false;
        else if (field.options) field.selectedIndex = 0;
        else field.value = "";
      }
      page = 0;
      draw();
    });
    byId("controls").hidden = false;
    draw();
  }

  if (byId("data")) gallery(JSON.parse(byId("data").textContent));
})();
