"use strict";
(() => {
  const table = document.querySelector("table.fleet");
  const rows = [...table.tBodies[0].rows].filter((row) => row.cells.length > 1);
  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  const kinds = [...document.querySelectorAll("button[data-alarm]")];
  const hours = (time) => (Date.now() - new Date(time.dateTime)) / 3.6e6;
  const span = (h) => (h < 1 ? `${Math.round(h * 60)} min` : h < 48 ? `${Math.round(h)} h` : `${Math.round(h / 24)} days`);

  for (const time of document.querySelectorAll("time")) {
    const h = hours(time);
    time.title = `${h < 0 ? `in ${span(-h)}` : `${span(h)} ago`}; ${new Date(time.dateTime).toLocaleString()} here`;
  }
  const age = hours(document.getElementById("written"));
  if (age > 26) {
    const stale = document.getElementById("stale");
    stale.textContent = `This page is ${span(age)} old: no run has been published since.`;
    stale.hidden = false;
  }

  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = kinds.filter((k) => k.getAttribute("aria-pressed") === "true").map((k) => k.dataset.alarm);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const held = row.dataset.alarms.split(" ");
      row.hidden = !words.every((w) => text.includes(w)) || (wanted.length > 0 && !wanted.some((k) => held.includes(k)));
      if (!row.hidden) count += 1;
    }
    shown.textContent = count === rows.length ? "" : `${count} of ${rows.length}`;
  };
  find.parentElement.hidden = rows.length < 2;
  find.addEventListener("input", filter);
  for (const kind of kinds) {
    kind.addEventListener("click", () => {
      kind.setAttribute("aria-pressed", kind.getAttribute("aria-pressed") === "false");
      filter();
    });
  }

  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!("sort" in head.dataset)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const one of heads) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const numbers = rows.every((row) => value(row) !== "" && !isNaN(value(row)));
      const compare = numbers ? (a, b) => value(a) - value(b) : (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
      table.tBodies[0].append(...rows.sort((a, b) => (down ? compare(b, a) : compare(a, b))));
    });
  });
  filter();
})();
