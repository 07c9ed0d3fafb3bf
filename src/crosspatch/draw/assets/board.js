// A board of attention on a canvas: queries from the top down, keys across, tokens beside and below.
"use strict";
const board = (() => {
  const LONGEST = 15; // letters of a label
  const FONT = "10px ui-sans-serif, system-ui, sans-serif";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const shorten = (text) => (text.length > LONGEST ? text.slice(0, LONGEST - 1) + "…" : text);

  // Where things go on a board of so many pixels' width, at most.
  function layOut(pen, labels, width) {
    pen.font = FONT;
    const longest = Math.ceil(Math.max(...labels.map((label) => pen.measureText(label).width)));
    const n = labels.length;
    const left = longest + 8;
    const room = Math.max(120, width - left - 4);
    const cell = Math.max(2, Math.min(24, Math.floor(Math.min(room, 480) / n)));
    const below = Math.ceil(longest * Math.SQRT1_2) + 16;
    return { n, left, cell, top: 2, width: left + n * cell + 4, height: 2 + n * cell + below };
  }

  function drawCells(pen, box, values, one) {
    const gap = box.cell > 8 ? 1 : 0;
    const [line, blank, accent] = ["line", "page", "accent"].map(colour);
    pen.fillStyle = line;
    pen.fillRect(box.left - 1, box.top - 1, box.n * box.cell + 1, box.n * box.cell + 1);
    values.forEach((value, place) => {
      const x = box.left + (place % box.n) * box.cell;
      const y = box.top + Math.floor(place / box.n) * box.cell;
      pen.globalAlpha = 1;
      pen.fillStyle = blank;
      pen.fillRect(x, y, box.cell - gap, box.cell - gap);
      pen.globalAlpha = value / one;
      pen.fillStyle = accent;
      pen.fillRect(x, y, box.cell - gap, box.cell - gap);
    });
    pen.globalAlpha = 1;
  }

  function drawLabels(pen, box, labels, strong) {
    const [ink, soft] = ["ink", "soft"].map(colour);
    pen.font = FONT;
    pen.textAlign = "right";
    let last = -99;
    for (let at = 0; at < box.n; at++) {
      if ((at - last) * box.cell < 11) continue;
      last = at;
      const middle = (at + 0.5) * box.cell;
      pen.fillStyle = strong(at) ? ink : soft;
      pen.fillText(labels[at], box.left - 5, box.top + middle + 3.5);
      pen.save();
      pen.translate(box.left + middle + 3, box.top + box.n * box.cell + 11);
      pen.rotate(-Math.PI / 4);
      pen.fillText(labels[at], 0, 0);
      pen.restore();
    }
  }

  // Draw weights, row by row, `one` meaning 1.0; `strong` tells which labels stand out. Give where things are.
  function draw(canvas, { values, one, labels, strong, width }) {
    const pen = canvas.getContext("2d");
    const short = labels.map(shorten);
    const box = layOut(pen, short, width);
    const zoom = Math.min(3, window.devicePixelRatio || 1);
    canvas.width = Math.ceil(box.width * zoom);
    canvas.height = Math.ceil(box.height * zoom);
    canvas.style.width = `${box.width}px`;
    canvas.style.height = `${box.height}px`;
    pen.scale(zoom, zoom);
    drawCells(pen, box, values, one);
    drawLabels(pen, box, short, strong);
    return box;
  }

  // The cell under the pointer; null beside the board.
  function cellAt(canvas, box, event) {
    const outer = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - outer.left - box.left) / box.cell);
    const row = Math.floor((event.clientY - outer.top - box.top) / box.cell);
    return row >= 0 && row < box.n && column >= 0 && column < box.n ? { row, column } : null;
  }

  return { draw, cellAt, colour };
})();
