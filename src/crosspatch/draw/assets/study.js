// The page of a study: a map's cells are named under the pointer and by arrow keys, from the table below it.
"use strict";
(() => {
  const done = page.begin();
  const { tip, element, shape } = page;
  const live = document.getElementById("live");
  const STEP = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function mapOf(figure) {
    const svg = figure.querySelector("svg.map");
    const [left, top, width, height, columns, rows] = svg.dataset.grid.split(" ").map(Number);
    return { svg, table: figure.querySelector("table"), left, top, width, height, columns, rows, unit: figure.dataset.unit };
  }

  function cellAt(map, event) {
    const box = map.svg.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - map.left) / map.width);
    const row = map.rows - 1 - Math.floor((event.clientY - box.top - map.top) / map.height);
    return column >= 0 && column < map.columns && row >= 0 && row < map.rows ? { row, column } : null;
  }

  // A table's first line and first column are labels; its lines go down as the map's rows do.
  function fillTip(map, { row, column }) {
    const head = map.table.tHead.rows[0].cells;
    const line = map.table.tBodies[0].rows[map.rows - 1 - row].cells;
    const value = line[column + 1].textContent;
    const told = element("div");
    if (value === "–") told.textContent = "not run";
    else told.append(element("span", value, "value"), ` ${map.unit}`);
    const where = [head[0].textContent, line[0].textContent].filter(Boolean).join(" ");
    tip.replaceChildren(element("b", `${where} · ${head[column + 1].textContent}`), told);
  }

  function show(map, cell, x, y) {
    document.querySelectorAll(".cursor").forEach((old) => old.remove());
    if (!cell) {
      tip.className = "";
      return;
    }
    const corner = { x: map.left + cell.column * map.width - 1, y: map.top + (map.rows - 1 - cell.row) * map.height - 1 };
    map.svg.append(shape("rect", { class: "cursor", ...corner, width: map.width + 1, height: map.height + 1 }));
    fillTip(map, cell);
    page.showTip(x, y);
  }

  function speak(map, cell) {
    show(map, cell, 0, 0);
    const cursor = map.svg.querySelector(".cursor");
    cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = cursor.getBoundingClientRect();
    page.showTip(box.left, box.bottom);
    live.textContent = tip.textContent;
  }

  function listen(figure) {
    const map = mapOf(figure);
    const frame = map.svg.parentElement;
    if (!map.rows || !map.columns) return;
    let cell = { row: map.rows - 1, column: 0 };
    map.svg.addEventListener("pointermove", (event) => show(map, cellAt(map, event), event.clientX, event.clientY));
    map.svg.addEventListener("pointerleave", () => show(map, null));
    frame.addEventListener("focus", () => frame.matches(":focus-visible") && speak(map, cell));
    frame.addEventListener("blur", () => show(map, null));
    frame.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show(map, null);
      else if (event.key in STEP) {
        const [up, right] = STEP[event.key];
        const row = Math.min(map.rows - 1, Math.max(0, cell.row + up));
        speak(map, (cell = { row, column: Math.min(map.columns - 1, Math.max(0, cell.column + right)) }));
      } else return;
      event.preventDefault();
    });
  }

  document.querySelectorAll("figure[data-map]").forEach(listen);
  done();
})();
