// What the scripts of pages share: elements made of text alone, numbers, the tooltip's place, copies and downloads.
"use strict";
const page = (() => {
  const namespace = document.querySelector("svg")?.namespaceURI;
  const tip = document.getElementById("tip");

  function element(tag, text = "", name = "") {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function shape(tag, attributes) {
    const made = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function format(value, digits = 3) {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.5 * 10 ** -digits || size >= 1e5)) return value.toExponential(1);
    return value.toFixed(digits);
  }

  function showTip(x, y) {
    tip.className = "on";
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - box.width - 12 : x + 16;
    const top = y + 14 + box.height > innerHeight ? y - box.height - 10 : y + 14;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  function save(name, type, text) {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function copy(button) {
    const text = document.getElementById("command").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById("command"));
      button.textContent = "selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "copy"), 2000);
  }

  function onClick(selector, act) {
    document.querySelectorAll(selector).forEach((button) => button.addEventListener("click", () => act(button)));
  }

  onClick("button[data-copy]", copy);

  // A page is ready when all its scripts are: each calls `begin`, and what that gives once it is done.
  let waiting = 0;

  function begin() {
    waiting += 1;
    return () => {
      waiting -= 1;
      if (waiting === 0) document.documentElement.dataset.ready = "yes";
    };
  }

  // Bytes that a script element holds deflated, in base64.
  async function inflate(id) {
    const text = document.getElementById(id).textContent;
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const STEP = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  // The cell that a key leads to, rows from the top down; null for a key that leads nowhere.
  function moved(cell, key, { rows, columns }) {
    if (key === "Home") return { ...cell, column: 0 };
    if (key === "End") return { ...cell, column: columns - 1 };
    if (!(key in STEP)) return null;
    const within = (value, count) => Math.min(count - 1, Math.max(0, value));
    return { row: within(cell.row + STEP[key][0], rows), column: within(cell.column + STEP[key][1], columns) };
  }

  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

  return { tip, element, shape, format, showTip, save, onClick, begin, inflate, moved, quoted };
})();
