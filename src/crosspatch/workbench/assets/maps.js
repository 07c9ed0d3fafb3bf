// The maps of a sweep: drawn by the server, coloured here as cells arrive; pointed at, clicked, dragged over.
"use strict";
const maps = (() => {
  const { tip, element, shape, format } = page;
  const box = document.getElementById("maps");
  const live = document.getElementById("live");
  const STEPS = 20;
  const BEYOND = 1.025; // half a step of colour beyond the last
  let now = null; // the sweep that is shown

  function show(sweep, { onCell, onSelect }) {
    now = { ...sweep, raw: new Array(sweep.sites.length).fill(null), gap: null, limit: 1, chosen: new Set(), onCell, onSelect };
    now.panels = sweep.panels.map(panelOf);
    box.replaceChildren(...now.panels.map((panel) => panel.figure));
    now.panels.forEach(listen);
    onSelect([]);
  }

  function panelOf(given) {
    const figure = element("figure");
    figure.tabIndex = 0;
    figure.setAttribute("aria-label", `${given.title}: arrow keys move, Enter looks inside, Space selects`);
    const parsed = new DOMParser().parseFromString(given.svg, "image/svg+xml");
    const svg = document.importNode(parsed.documentElement, true);
    figure.append(svg);
    const [left, top, width, height, columns, rows] = svg.dataset.grid.split(" ").map(Number);
    const paths = [...svg.querySelectorAll(".cells > path")];
    return { ...given, figure, svg, paths, left, top, width, height, count: columns, tall: rows };
  }

  // ---- values -----------------------------------------------------------------------------------------------------

  function begin({ base, source, still }) {
    now.gap = source - base;
    still.forEach((site) => (now.raw[site] = 0));
    paint();
  }

  function add({ sites, raw }) {
    sites.forEach((site, place) => (now.raw[site] = raw[place]));
    paint(new Set(sites));
  }

  function end({ limit }) {
    now.limit = limit;
    paint();
  }

  const valueOf = (site) => (now.raw[site] === null ? null : now.gap ? now.raw[site] / now.gap : now.raw[site]);

  // A white corner says that a cell is beyond the scale, as on the page of a result.
  function corner(panel, place) {
    const x = panel.left + (place % panel.count + 1) * panel.width - 1;
    const y = panel.top + (panel.tall - 1 - Math.floor(place / panel.count)) * panel.height;
    const size = Math.min(5, panel.width - 1);
    panel.svg.append(shape("path", { class: "off", fill: "#fff", d: `M${x} ${y}v${size}l-${size} -${size}z` }));
  }

  function paint(only) {
    if (!only) wipe("off");
    for (const panel of now.panels) {
      panel.index.flat().forEach((site, place) => {
        if (site < 0 || (only && !only.has(site))) return;
        const value = valueOf(site);
        if (value === null) return;
        const level = Math.round(Math.max(-1, Math.min(1, value / now.limit)) * STEPS);
        panel.paths[place].setAttribute("class", (level < 0 ? "n" : "p") + Math.abs(level));
        if (Math.abs(value) > now.limit * BEYOND) corner(panel, place);
      });
    }
  }

  // ---- cells ------------------------------------------------------------------------------------------------------

  function cellAt(panel, event) {
    const seen = panel.svg.getBoundingClientRect();
    const zoom = panel.svg.viewBox.baseVal.width / seen.width;
    const column = Math.floor(((event.clientX - seen.left) * zoom - panel.left) / panel.width);
    const row = panel.tall - 1 - Math.floor(((event.clientY - seen.top) * zoom - panel.top) / panel.height);
    return column >= 0 && column < panel.count && row >= 0 && row < panel.tall ? { row, column } : null;
  }

  function frame(panel, from, to, name) {
    const low = { row: Math.min(from.row, to.row), column: Math.min(from.column, to.column) };
    const high = { row: Math.max(from.row, to.row), column: Math.max(from.column, to.column) };
    return shape("rect", {
      class: name,
      x: panel.left + low.column * panel.width - 1,
      y: panel.top + (panel.tall - 1 - high.row) * panel.height - 1,
      width: (high.column - low.column + 1) * panel.width + 1,
      height: (high.row - low.row + 1) * panel.height + 1,
    });
  }

  const siteAt = (panel, cell) => panel.index[cell.row][cell.column];

  function wipe(name) {
    box.querySelectorAll(`.${name}`).forEach((old) => old.remove());
  }

  function point(panel, cell, x, y) {
    wipe("cursor");
    if (!cell) {
      tip.className = "";
      return;
    }
    panel.svg.append(frame(panel, cell, cell, "cursor"));
    const site = siteAt(panel, cell);
    const value = site < 0 ? null : valueOf(site);
    const token = (panel.columns[cell.column] || "").split(" ·")[1];
    tip.replaceChildren(element("b", site < 0 ? "not swept" : now.sites[site]), element("span", token ? ` ${token}` : "", "soft"));
    const line = element("div");
    if (value === null) line.textContent = "not run yet";
    else line.append(element("span", format(value), "value"), now.gap ? " of the gap" : ` ${now.unit}`);
    tip.append(line);
    if (value !== null && now.gap) tip.append(element("div", `${now.metric} ${format(now.raw[site])}`, "soft"));
    page.showTip(x, y);
  }

  // ---- choosing ---------------------------------------------------------------------------------------------------

  function choose(panel, from, to, add) {
    if (!add) now.chosen.clear();
    for (let row = Math.min(from.row, to.row); row <= Math.max(from.row, to.row); row++) {
      for (let column = Math.min(from.column, to.column); column <= Math.max(from.column, to.column); column++) {
        const site = panel.index[row][column];
        if (site >= 0) now.chosen.add(site);
      }
    }
    marks();
  }

  function toggle(site) {
    if (site < 0) return;
    if (!now.chosen.delete(site)) now.chosen.add(site);
    marks();
  }

  function marks() {
    wipe("chosen");
    for (const panel of now.panels) {
      panel.index.forEach((line, row) =>
        line.forEach((site, column) => {
          if (now.chosen.has(site)) panel.svg.append(frame(panel, { row, column }, { row, column }, "chosen"));
        })
      );
    }
    now.onSelect([...now.chosen].sort((a, b) => a - b).map((site) => now.sites[site]));
  }

  function none() {
    now?.chosen.clear();
    if (now) marks();
  }

  // ---- pointer and keyboard -----------------------------------------------------------------------------------------

  function look(panel, cell) {
    const site = siteAt(panel, cell);
    if (site >= 0) now.onCell({ site: now.sites[site], kind: panel.kind });
  }

  function listenToPointer(panel, at) {
    let from = null;
    panel.svg.addEventListener("pointerdown", (event) => {
      from = event.button === 0 ? cellAt(panel, event) : null;
      if (from && event.pointerType === "mouse") {
        panel.svg.setPointerCapture(event.pointerId);
        event.preventDefault();
        panel.figure.focus({ preventScroll: true });
      }
    });
    panel.svg.addEventListener("pointermove", (event) => {
      const cell = cellAt(panel, event);
      point(panel, cell, event.clientX, event.clientY);
      wipe("drag");
      if (from && cell && event.buttons && event.pointerType === "mouse") panel.svg.append(frame(panel, from, cell, "drag"));
    });
    panel.svg.addEventListener("pointerup", (event) => {
      const cell = cellAt(panel, event);
      wipe("drag");
      if (from && cell) {
        at.cell = cell;
        if (from.row !== cell.row || from.column !== cell.column) choose(panel, from, cell, event.shiftKey);
        else if (event.shiftKey) toggle(siteAt(panel, cell));
        else look(panel, cell);
      }
      from = null;
    });
    panel.svg.addEventListener("pointerleave", () => point(panel, null));
  }

  function speak(panel, cell) {
    const seen = panel.svg.getBoundingClientRect();
    const zoom = seen.width / panel.svg.viewBox.baseVal.width;
    const x = seen.left + (panel.left + (cell.column + 0.5) * panel.width) * zoom;
    point(panel, cell, x, seen.top + (panel.top + (panel.tall - cell.row) * panel.height) * zoom);
    live.textContent = tip.textContent;
  }

  // Keys count rows from the top down, layers from the bottom up.
  function step(panel, at, key) {
    const top = panel.tall - 1;
    const to = page.moved({ ...at.cell, row: top - at.cell.row }, key, { rows: panel.tall, columns: panel.count });
    if (to) speak(panel, (at.cell = { ...to, row: top - to.row }));
    return to;
  }

  function listen(panel) {
    const at = { cell: { row: panel.tall - 1, column: 0 } };
    listenToPointer(panel, at);
    panel.figure.addEventListener("focus", () => panel.figure.matches(":focus-visible") && speak(panel, at.cell));
    panel.figure.addEventListener("blur", () => point(panel, null));
    panel.figure.addEventListener("keydown", (event) => {
      if (event.key === "Escape") none();
      else if (event.key === "Enter") look(panel, at.cell);
      else if (event.key === " ") toggle(siteAt(panel, at.cell));
      else if (!step(panel, at, event.key)) return;
      event.preventDefault();
    });
  }

  const nameOf = (site) => now.sites[site];

  return { show, begin, add, end, none, nameOf };
})();
