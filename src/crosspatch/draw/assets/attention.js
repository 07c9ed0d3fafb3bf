// The attention of a head that is chosen in its map: one board a run, queries from the top down, keys across.
"use strict";
(() => {
  const { tip, element, format, inflate, moved } = page;
  const facts = JSON.parse(document.getElementById("attention-facts").textContent);
  const view = document.getElementById("attention-view");
  const figures = [...view.querySelectorAll("figure")];
  const live = document.getElementById("live");
  const chooseHead = document.getElementById("choose-head");
  const choosePair = document.getElementById("choose-pair");
  const chooseWeighting = document.getElementById("choose-weighting");
  const state = { bytes: null, site: null, head: 0, pair: 0, weighting: "pattern", from: null };
  const ONE = 255;
  const LEAST = 0.005; // of full colour: below, words would say 0.00
  const LISTED = 3; // entries in words under each board

  // ---- where the bytes of a head are ----------------------------------------------------------------------------

  const sizes = facts.pairs.map((pair) => pair.tokens[0].length);
  const blocks = facts.heads.length * facts.runs.length; // of one pair
  const sum = (list) => list.reduce((total, each) => total + each, 0);
  const cellsOf = (pairs) => sum(sizes.slice(0, pairs).map((n) => blocks * n * n)); // of the first pairs' patterns

  function patternOf(run) {
    const n = sizes[state.pair];
    const from = cellsOf(state.pair) + (state.head * facts.runs.length + run) * n * n;
    return Float32Array.from(state.bytes.subarray(from, from + n * n), (byte) => byte / ONE);
  }

  // The length of what the head writes when it attends to one key alone, key by key; these bytes are behind all patterns.
  function writtenOf(run) {
    const n = sizes[state.pair];
    const from = cellsOf(sizes.length) + blocks * sum(sizes.slice(0, state.pair)) + (state.head * facts.runs.length + run) * n;
    const most = facts.sizes[state.pair][state.head];
    return Float32Array.from(state.bytes.subarray(from, from + n), (byte) => (byte / ONE) * most);
  }

  const weighted = () => state.weighting === "value";

  function weights(run) {
    const pattern = patternOf(run);
    if (!weighted()) return pattern;
    const written = writtenOf(run);
    return pattern.map((weight, place) => weight * written[place % written.length]);
  }

  // What full colour means, the same in all runs.
  function full() {
    if (!weighted()) return 1;
    const most = (run) => weights(run).reduce((one, other) => Math.max(one, other), 1e-30);
    return Math.max(...facts.runs.map((_, run) => most(run)));
  }

  // ---- words -----------------------------------------------------------------------------------------------------

  const pairOf = () => facts.pairs[state.pair];
  const placeName = (at) => pairOf().names[at] ?? String(at);
  const word = (run, at) => `${placeName(at)} “${pairOf().tokens[run][at]}”`;
  const headName = (place) => `attn.head[${facts.heads[place].join(", ")}]`;

  function label(run, at) {
    const name = pairOf().names[at];
    const token = pairOf().tokens[run][at];
    return name ? `${name} ${token}` : token;
  }

  // The chosen site's own row (a query) or column (a key or value); null where it has no position of its own.
  function ownPlace() {
    const text = state.site?.position;
    if (text === undefined) return null;
    const named = Object.entries(pairOf().names).find(([, name]) => name === text);
    const at = named ? Number(named[0]) : Number(text);
    const n = sizes[state.pair];
    return Number.isInteger(at) && at < n && at >= -n ? (at + n) % n : null;
  }

  function strongest(run) {
    const n = sizes[state.pair];
    const values = weights(run);
    const own = ownPlace();
    const there = (query, key) => {
      if (own === null) return query > 0 && key > 0;
      return (state.site.key ? key : query) === own;
    };
    const least = LEAST * full();
    const places = [...values.keys()].filter((i) => there(Math.floor(i / n), i % n) && values[i] > least);
    places.sort((a, b) => values[b] - values[a]);
    const told = places.slice(0, LISTED).map((i) => {
      return `${word(run, Math.floor(i / n))} → ${word(run, i % n)} ${format(values[i], 2)}`;
    });
    if (!told.length) return "Nothing is attended to here.";
    return told.join(" · ") + (own === null ? ". The first token is left out." : "");
  }

  // ---- boards ----------------------------------------------------------------------------------------------------

  function drawOwn(pen, box) {
    const own = ownPlace();
    if (own === null) return;
    pen.strokeStyle = board.colour("differs");
    pen.lineWidth = 1.5;
    const long = box.n * box.cell;
    const at = own * box.cell;
    if (state.site.key) pen.strokeRect(box.left + at - 1, box.top - 1, box.cell + 1, long + 1);
    else pen.strokeRect(box.left - 1, box.top + at - 1, long + 1, box.cell + 1);
  }

  const boxes = [];

  function drawBoard(figure, run) {
    const canvas = figure.querySelector("canvas");
    const labels = Array.from({ length: sizes[state.pair] }, (_, at) => label(run, at));
    const strong = (at) => Boolean(pairOf().names[at]);
    const box = board.draw(canvas, { values: weights(run), one: full(), labels, strong, width: figure.clientWidth });
    drawOwn(canvas.getContext("2d"), box);
    const told = strongest(run);
    const name = `${headName(state.head)}, ${facts.runs[run]}, pair ${state.pair}`;
    canvas.setAttribute("aria-label", `Attention${weighted() ? " × size of value" : ""} of ${name}: ${told}`);
    figure.setAttribute("aria-label", `${name}: arrow keys move over queries (rows) and keys (columns)`);
    figure.parentElement.querySelector(".most").textContent = told;
    boxes[run] = box;
    mark(figure, run, null);
  }

  function draw() {
    if (!state.bytes || view.classList.contains("gone")) return;
    chooseHead.value = String(state.head);
    choosePair.value = String(state.pair);
    if (chooseWeighting) chooseWeighting.value = state.weighting;
    document.getElementById("attention-about").textContent = about();
    figures.forEach(drawBoard);
  }

  function about() {
    const what = weighted()
      ? `attention times the length of what the head writes for that key alone (at most ${format(full(), 2)})`
      : "attention (at most 1)";
    const axes = `Rows are queries, columns keys; the stronger the colour, the more ${what}.`;
    if (!state.site?.key || facts.group < 2) return axes;
    const first = Math.floor(facts.heads[state.head][1] / facts.group) * facts.group;
    return `${axes} ${state.site.name} is read by heads ${first} to ${first + facts.group - 1}: choose one above.`;
  }

  // ---- pointer and keyboard --------------------------------------------------------------------------------------

  function mark(figure, run, cell) {
    const spot = figure.querySelector(".spot");
    spot.classList.toggle("gone", !cell);
    if (!cell) return;
    const box = boxes[run];
    spot.style.left = `${box.left + cell.column * box.cell - 2}px`;
    spot.style.top = `${box.top + cell.row * box.cell - 2}px`;
    spot.style.width = spot.style.height = `${box.cell + 3}px`;
  }

  function tell(figure, run, cell, x, y) {
    mark(figure, run, cell);
    if (!cell) {
      tip.className = "";
      return;
    }
    const value = weights(run)[cell.row * boxes[run].n + cell.column];
    tip.replaceChildren(element("b", `${word(run, cell.row)} → ${word(run, cell.column)}`));
    const line = element("div");
    line.append(element("span", format(value, 2), "value"), ` ${facts.runs[run]}`);
    tip.append(line);
    page.showTip(x, y);
  }

  function listen(figure, run) {
    let cell = { row: 0, column: 0 };
    const canvas = figure.querySelector("canvas");
    const speak = () => {
      const outer = canvas.getBoundingClientRect();
      const box = boxes[run];
      const at = [box.left + (cell.column + 0.5) * box.cell, box.top + (cell.row + 1) * box.cell];
      tell(figure, run, cell, outer.left + at[0], outer.top + at[1]);
      live.textContent = tip.textContent;
    };
    canvas.addEventListener("pointermove", (event) => {
      const inside = board.cellAt(canvas, boxes[run], event);
      tell(figure, run, inside && (cell = inside), event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => tell(figure, run, null));
    figure.addEventListener("focus", () => {
      if (!figure.matches(":focus-visible")) return;
      const last = boxes[run].n - 1;
      cell = { row: Math.min(cell.row, last), column: Math.min(cell.column, last) };
      speak();
    });
    figure.addEventListener("blur", () => tell(figure, run, null));
    figure.addEventListener("keydown", (event) => {
      const to = moved(cell, event.key, { rows: boxes[run].n, columns: boxes[run].n });
      if (!to) return;
      cell = to;
      speak();
      event.preventDefault();
    });
  }

  // ---- opening and closing ---------------------------------------------------------------------------------------

  // attn.head[11, 2]@end: its heads are those of the page, where keys and values belong to several.
  function siteOf(name) {
    const parts = /^([\w.]+)\[(\d+), (\d+)\](?:@(.+))?$/.exec(name);
    if (!parts || !facts.kinds.includes(parts[1])) return null;
    const key = facts.keys.includes(parts[1]);
    const unit = Number(parts[3]) * (key ? facts.group : 1);
    const last = key ? unit + facts.group - 1 : unit;
    const head = facts.heads.findIndex(([layer, each]) => layer === Number(parts[2]) && each >= unit && each <= last);
    return { name, key, position: parts[4], head };
  }

  async function open(name) {
    const site = siteOf(name);
    if (!site) return;
    if (site.head < 0) {
      live.textContent = `The attention of ${name} is not on this page.`;
      return;
    }
    state.bytes ??= await inflate("attention-numbers");
    state.from = document.activeElement;
    Object.assign(state, { site, head: site.head });
    view.classList.remove("gone");
    draw();
    view.querySelector(".tools").scrollIntoView({ block: "nearest" });
  }

  function close() {
    if (view.classList.contains("gone")) return;
    const inside = view.contains(document.activeElement);
    view.classList.add("gone");
    tip.className = "";
    if (inside) state.from?.focus();
  }

  function change(part, value) {
    state[part] = value;
    draw();
    const words = chooseWeighting ? [chooseWeighting.selectedOptions[0].textContent] : [];
    live.textContent = [headName(state.head), `pair ${state.pair}`, ...words].join(", ");
  }

  function option(text, value) {
    const made = element("option", text);
    made.value = String(value);
    return made;
  }

  chooseHead.append(...facts.heads.map((_, place) => option(headName(place), place)));
  choosePair.append(...facts.pairs.map((_, place) => option(`pair ${place}`, place)));
  chooseHead.addEventListener("change", () => change("head", Number(chooseHead.value)));
  choosePair.addEventListener("change", () => change("pair", Number(choosePair.value)));
  chooseWeighting?.addEventListener("change", () => change("weighting", chooseWeighting.value));
  document.getElementById("attention-close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => event.key === "Escape" && close());
  document.addEventListener("keep", ({ detail }) => {
    if (detail.kept) open(detail.name);
    else if (state.site?.name === detail.name) close();
  });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  figures.forEach(listen);
})();
