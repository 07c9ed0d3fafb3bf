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

  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

  return { tip, element, shape, format, showTip, save, copy, onClick, quoted };
})();
