// The page's interactivity: exact values under the pointer or the keyboard, kept cells, scales, downloads. No network.
"use strict";
(() => {
  const done = page.begin();
  const { tip, element, shape, format, save, onClick, inflate, moved, quoted } = page;
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const figures = [...document.querySelectorAll("figure[data-panel]")];
  const live = document.getElementById("live");
  const state = { view: facts.normalised ? "normalised" : "raw", own: false, pinned: [], data: null, names: [] };
  const STEPS = 20;

  // ---- numbers ------------------------------------------------------------------------------------------------

  function toFloats(planes) {
    const count = planes.length / 4;
    const out = new Uint8Array(planes.length);
    for (let i = 0; i < count; i++) for (let k = 0; k < 4; k++) out[4 * i + k] = planes[k * count + i];
    return new Float32Array(out.buffer);
  }

  function split(floats) {
    const total = facts.sites;
    const data = {};
    facts.columns.forEach((name, place) => {
      data[name] = floats.subarray(place * total, (place + 1) * total);
    });
    data.raw = floats.subarray(facts.columns.length * total);
    data.row = facts.rows && new Map(facts.rows.map((site, place) => [site, place]));
    return data;
  }

  function rawOf(site) {
    const row = state.data.row ? state.data.row.get(site) : site;
    return row === undefined ? null : state.data.raw.subarray(row * facts.n, (row + 1) * facts.n);
  }

  function examplesOf(site) {
    const raw = rawOf(site);
    if (!raw) return null;
    return state.view === "raw" ? raw : raw.map((value) => value / facts.gap);
  }

  function numbersOf(site) {
    const data = state.data;
    const name = state.view === "raw" ? ["raw_mean", "raw_low", "raw_high"] : ["mean", "low", "high"];
    const [mean, low, high] = name.map((column) => data[column][site]);
    return { mean, low, high, q: data.q[site], pairs: data.pairs[site] };
  }

  const formatQ = (q) => (Number.isNaN(q) ? "–" : q < 0.001 ? "< 0.001" : "= " + Number(q.toPrecision(2)));
  const bounds = (low, high) => (Number.isNaN(low) ? "no interval" : `[${format(low)}, ${format(high)}]`);

  // ---- strips -----------------------------------------------------------------------------------------------------

  function strip(values, { mean, low, high }, width) {
    const there = [...values].filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
    const ends = [...there, 0, Number.isNaN(low) ? 0 : low, Number.isNaN(high) ? 0 : high];
    const first = Math.min(...ends);
    const last = Math.max(...ends);
    const at = (value) => (6 + ((value - first) / (last - first || 1)) * (width - 12)).toFixed(1);
    const label = "values of single pairs";
    const svg = shape("svg", { width, height: 22, class: "strip", role: "img", "aria-label": label });
    svg.append(shape("path", { d: `M${at(0)} 1v20`, stroke: "currentColor", "stroke-opacity": 0.35, fill: "none" }));
    const dots = there.map((value, rank) => `M${at(value)} ${7 + 4 * (rank % 3)}h0`).join("");
    const look = { "stroke-width": 4, "stroke-linecap": "round", "stroke-opacity": 0.5, fill: "none" };
    svg.append(shape("path", { d: dots, class: "dots", ...look }));
    const line = Number.isNaN(low) ? "" : `M${at(low)} 11H${at(high)}`;
    const whisker = `${line}M${at(mean)} 5v12`;
    svg.append(shape("path", { d: whisker, stroke: "currentColor", "stroke-width": 1.6, fill: "none" }));
    return svg;
  }

  // ---- cells ------------------------------------------------------------------------------------------------------

  function panelOf(figure) {
    const svg = figure.querySelector("svg.map");
    const [left, top, width, height, columns, rows] = svg.dataset.grid.split(" ").map(Number);
    const index = facts.panels[Number(figure.dataset.panel)].index;
    return { figure, svg, left, top, width, height, columns, rows, index };
  }

  const panels = figures.map(panelOf);

  function cellAt(panel, event) {
    const box = panel.svg.getBoundingClientRect();
    const zoom = panel.svg.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * zoom - panel.left) / panel.width);
    const row = panel.rows - 1 - Math.floor(((event.clientY - box.top) * zoom - panel.top) / panel.height);
    const inside = column >= 0 && column < panel.columns && row >= 0 && row < panel.rows;
    return inside ? { row, column } : null;
  }

  function cornerOf(panel, { row, column }) {
    return [panel.left + column * panel.width, panel.top + (panel.rows - 1 - row) * panel.height];
  }

  const siteAt = (panel, cell) => panel.index[cell.row][cell.column];

  function moveCursor(panel, cell) {
    document.querySelectorAll(".cursor").forEach((old) => old.remove());
    if (!cell) return;
    const [x, y] = cornerOf(panel, cell);
    const box = { x: x - 1, y: y - 1, width: panel.width + 1, height: panel.height + 1 };
    panel.svg.append(shape("rect", { class: "cursor", ...box }));
  }

  // ---- tooltip ----------------------------------------------------------------------------------------------------

  function fillTip(panel, cell) {
    const site = siteAt(panel, cell);
    const place = facts.panels[Number(panel.figure.dataset.panel)];
    tip.replaceChildren();
    if (site < 0 || !state.data) {
      tip.append(element("b", `${place.rows[cell.row]} · ${place.columns[cell.column]}`), element("div", "not run"));
      return;
    }
    const numbers = numbersOf(site);
    const token = place.columns[cell.column].split(" ·")[1];
    tip.append(element("b", state.names[site]), element("span", token ? ` ${token}` : "", "soft"));
    const line = element("div");
    line.append(element("span", format(numbers.mean), "value"), ` ${bounds(numbers.low, numbers.high)} ${unit()}`);
    tip.append(line);
    if (Number.isNaN(numbers.mean)) line.textContent = "not run";
    else if (numbers.mean === 0 && numbers.low === 0 && numbers.high === 0) {
      line.textContent = "exactly 0: both runs agree here";
    } else tip.append(element("div", `q ${formatQ(numbers.q)} · ${numbers.pairs} pair${numbers.pairs === 1 ? "" : "s"}`, "soft"));
    const values = examplesOf(site);
    if (values && numbers.pairs > 0) tip.append(strip(values, numbers, 230));
  }

  const unit = () => (state.view === "raw" ? facts.unit : "");

  function showTip(panel, cell, x, y) {
    moveCursor(panel, cell);
    if (!cell) {
      tip.className = "";
      return;
    }
    fillTip(panel, cell);
    page.showTip(x, y);
  }

  // ---- kept cells -------------------------------------------------------------------------------------------------

  function keep(site) {
    if (site < 0 || !state.data) return;
    const place = state.pinned.indexOf(site);
    if (place >= 0) state.pinned.splice(place, 1);
    else state.pinned.push(site);
    drawPinned();
    // What else a page shows of a site listens for this.
    document.dispatchEvent(new CustomEvent("keep", { detail: { name: state.names[site], kept: place < 0 } }));
  }

  function extremes(values) {
    const order = [...values.keys()].filter((i) => !Number.isNaN(values[i])).sort((a, b) => values[a] - values[b]);
    if (!order.length) return "";
    const name = (i) => `${format(values[i], 2)} (pair ${i}${facts.answers[i] ? ": " + facts.answers[i] : ""})`;
    return `${name(order[0])} … ${name(order[order.length - 1])}`;
  }

  function pinnedRow(site) {
    const numbers = numbersOf(site);
    const values = examplesOf(site);
    const row = element("tr");
    row.append(element("td", state.names[site], "mono"));
    row.append(element("td", `${format(numbers.mean)} ${bounds(numbers.low, numbers.high)} ${unit()}`));
    const dots = element("td");
    if (values) dots.append(strip(values, numbers, 200));
    row.append(dots, element("td", values ? extremes(values) : ""));
    row.append(element("td", formatQ(numbers.q).replace("= ", "")));
    const drop = element("button", "×");
    drop.setAttribute("aria-label", `remove ${state.names[site]}`);
    drop.addEventListener("click", () => keep(site));
    const last = element("td");
    last.append(drop);
    row.append(last);
    return row;
  }

  function drawPinned() {
    const box = document.getElementById("pinned");
    if (!box) return;
    box.querySelector("p").classList.toggle("gone", state.pinned.length > 0);
    box.querySelector(".scroll").classList.toggle("gone", state.pinned.length === 0);
    box.querySelector("tbody").replaceChildren(...state.pinned.map(pinnedRow));
  }

  // ---- colours ----------------------------------------------------------------------------------------------------

  function limitOf(panel) {
    if (!state.own) return facts.limits[state.view];
    const column = state.data[state.view === "raw" ? "raw_mean" : "mean"];
    const sizes = panel.index.flat().filter((site) => site >= 0 && !Number.isNaN(column[site]));
    return Math.max(...sizes.map((site) => Math.abs(column[site])), 0) || 1;
  }

  function paint(panel) {
    const column = state.data[state.view === "raw" ? "raw_mean" : "mean"];
    const limit = limitOf(panel);
    const cells = panel.svg.querySelectorAll(".cells > path:not(.off)");
    panel.index.flat().forEach((site, place) => {
      if (site < 0 || Number.isNaN(column[site])) return;
      const level = Math.round(Math.max(-1, Math.min(1, column[site] / limit)) * STEPS);
      cells[place].setAttribute("class", (level < 0 ? "n" : "p") + Math.abs(level));
    });
    panel.figure.classList.toggle("own", state.own);
    panel.svg.querySelector(".limit").textContent = state.own ? ` ± ${format(limit, 2)}` : "";
  }

  function redraw() {
    const words = facts.words[state.view];
    const ticks = state.own ? ["− limit", "+ limit"] : [-1, 1].map((s) => format(s * facts.limits[state.view], 2));
    document.querySelectorAll("#scale svg.bar").forEach((bar) => {
      bar.querySelector(".word-low").textContent = words[0];
      bar.querySelector(".word-high").textContent = words[1];
      bar.querySelector(".tick-low").textContent = ticks[0];
      bar.querySelector(".tick-high").textContent = ticks[1];
      bar.querySelector(".unit").textContent = state.view === "raw" ? facts.unit : facts.scale_words;
    });
    panels.forEach(paint);
    document.querySelectorAll("button[data-view]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    });
    document.querySelectorAll("button[data-own]").forEach((button) => {
      button.setAttribute("aria-pressed", String((button.dataset.own === "yes") === state.own));
    });
    drawPinned();
  }

  // ---- pointer and keyboard ---------------------------------------------------------------------------------------

  function speak(panel, cell) {
    const box = panel.svg.getBoundingClientRect();
    const zoom = box.width / panel.svg.viewBox.baseVal.width;
    const [x, y] = cornerOf(panel, cell);
    showTip(panel, cell, box.left + (x + panel.width / 2) * zoom, box.top + (y + panel.height) * zoom);
    live.textContent = tip.textContent;
  }

  function listen(panel) {
    let cell = { row: panel.rows - 1, column: 0 };
    const follow = (event) => showTip(panel, cellAt(panel, event), event.clientX, event.clientY);
    panel.svg.addEventListener("pointermove", follow);
    panel.svg.addEventListener("pointerleave", () => showTip(panel, null));
    panel.svg.addEventListener("click", (event) => {
      const found = cellAt(panel, event);
      if (found) keep(siteAt(panel, (cell = found)));
    });
    panel.figure.addEventListener("focus", () => panel.figure.matches(":focus-visible") && speak(panel, cell));
    panel.figure.addEventListener("blur", () => showTip(panel, null));
    panel.figure.addEventListener("keydown", (event) => {
      if (event.key === "Escape") showTip(panel, null);
      else if (event.key === "Enter" || event.key === " ") keep(siteAt(panel, cell));
      else {
        const from = { row: panel.rows - 1 - cell.row, column: cell.column };
        const to = moved(from, event.key, panel);
        if (!to) return;
        speak(panel, (cell = { row: panel.rows - 1 - to.row, column: to.column }));
      }
      event.preventDefault();
    });
  }

  // ---- download ---------------------------------------------------------------------------------------------------

  const plain = (value) => (Number.isNaN(value) ? "" : String(Number(value.toPrecision(8))));

  function csv() {
    const head = ["site", ...facts.columns, ...Array.from({ length: facts.n }, (_, i) => `raw_pair_${i}`)];
    const lines = state.names.map((name, site) => {
      const summary = facts.columns.map((column) => plain(state.data[column][site]));
      return [quoted(name), ...summary, ...Array.from(rawOf(site) ?? [], plain)].join(",");
    });
    return [head.join(","), ...lines].join("\n") + "\n";
  }

  function json() {
    const clean = (value) => (Number.isNaN(value) ? null : Number(value.toPrecision(8)));
    const sites = state.names.map((name, site) => {
      const summary = Object.fromEntries(facts.columns.map((column) => [column, clean(state.data[column][site])]));
      return { site: name, ...summary, raw: Array.from(rawOf(site) ?? [], clean) };
    });
    return JSON.stringify({ about: facts.about, sites }, null, 1);
  }

  function wire() {
    onClick("button[data-view]", (button) => ((state.view = button.dataset.view), redraw()));
    onClick("button[data-own]", (button) => ((state.own = button.dataset.own === "yes"), redraw()));
    onClick("button[data-save='csv']", () => save(`${facts.name}.csv`, "text/csv", csv()));
    onClick("button[data-save='json']", () => save(`${facts.name}.json`, "application/json", json()));
    panels.forEach(listen);
    redraw();
    done();
  }

  Promise.all([inflate("numbers"), inflate("names")]).then(([numbers, names]) => {
    state.data = split(toFloats(numbers));
    state.names = new TextDecoder().decode(names).split("\n");
    wire();
  });
})();
