// A circuit's interactivity: how many edges, what leads to a node and what it leads to, names under the pointer.
"use strict";
(() => {
  const done = page.begin();
  const { tip, element, format, save, onClick, quoted } = page;
  const facts = JSON.parse(document.getElementById("circuit-facts").textContent);
  const live = document.getElementById("live");
  const svg = document.querySelector("svg.network");
  const state = { shown: facts.size, picked: -1, hot: -1 };
  const all = (selector) => (svg ? [...svg.querySelectorAll(selector)] : []);
  const shapes = { nodes: all(".nodes > g"), edges: all(".edges > path").reverse(), carries: all(".carries > path") };

  const nodes = facts.nodes.map(([site, place, kind]) => ({ site, place, kind }));
  const edges = facts.edges.map(([source, target, port, receiver, score]) => {
    return { source, target, port, receiver: facts.receivers[receiver], score };
  });
  const isNode = (node) => nodes[node].kind !== "kv"; // a key-value head is an input of the heads that read it
  const at = (place) => (place ? ` @${place}` : "");
  const nameOf = (node) => nodes[node].site + at(nodes[node].place);
  const edgeName = (edge) => `${nodes[edge.source].site} → ${edge.receiver}${at(nodes[edge.source].place)}`;
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  // ---- how many edges ---------------------------------------------------------------------------------------------

  const seen = (shape, yes) => (yes ? shape.removeAttribute("display") : shape.setAttribute("display", "none"));
  const visible = (node) => !shapes.nodes[node].hasAttribute("display");

  function show(count) {
    state.shown = count;
    const touched = new Set();
    const ports = new Set();
    shapes.edges.forEach((shape, rank) => {
      seen(shape, rank < count);
      if (rank >= count) return;
      const { source, target, port } = edges[rank];
      touched.add(source).add(target);
      ports.add(`${target} ${port}`);
    });
    shapes.nodes.forEach((shape, node) => {
      seen(shape, touched.has(node));
      shape.querySelectorAll("path").forEach((dot) => seen(dot, ports.has(`${node} ${dot.getAttribute("class")}`)));
    });
    shapes.carries.forEach((shape, i) => seen(shape, facts.carries[i].every((node) => touched.has(node))));
    const words = describe(count, new Set([...touched].filter(isNode).map((node) => nodes[node].site)).size);
    document.getElementById("count").textContent = words;
    document.getElementById("slider").setAttribute("aria-valuetext", words);
    document.querySelectorAll("button[data-count]").forEach((button) => {
      button.setAttribute("aria-pressed", String(Number(button.dataset.count) === count));
    });
    pick(state.picked >= 0 && touched.has(state.picked) ? state.picked : -1);
    settle();
  }

  const bounds = ([, mean, low, high]) => `${format(mean, 2)}${low === null ? "" : ` [${format(low, 2)}, ${format(high, 2)}]`}`;

  function describe(count, touched) {
    const start = `${plural(count, "edge")}, ${plural(touched, "node")}`;
    const exact = facts.curve.find(([edges_]) => edges_ === count);
    if (exact) return `${start}, faithfulness ${bounds(exact)}`;
    const below = facts.curve.filter(([edges_]) => edges_ < count).pop();
    const above = facts.curve.find(([edges_]) => edges_ > count);
    const near = [below, above].filter(Boolean).map((point) => `${format(point[1], 2)} at ${point[0].toLocaleString("en")}`);
    return near.length ? `${start}; faithfulness was measured nearby: ${near.join(", ")}` : start;
  }

  // ---- what leads to a node, and what it leads to -------------------------------------------------------------------

  function walk(start, forward) {
    const steps = [...edges.slice(0, state.shown).map((edge) => [edge.source, edge.target])];
    steps.push(...facts.carries.filter((pair) => pair.every(visible)));
    const found = new Set([start]);
    const next = new Map();
    for (const [one, two] of steps) {
      const [from, to] = forward ? [one, two] : [two, one];
      if (!next.has(from)) next.set(from, []);
      next.get(from).push(to);
    }
    for (const node of found) for (const other of next.get(node) ?? []) found.add(other);
    return found;
  }

  function pick(node) {
    state.picked = node;
    svg.classList.toggle("picking", node >= 0);
    const [up, down] = node < 0 ? [new Set(), new Set()] : [walk(node, false), walk(node, true)];
    const inside = (one, two) => (up.has(one) && up.has(two)) || (down.has(one) && down.has(two));
    shapes.nodes.forEach((shape, i) => {
      shape.classList.toggle("lit", up.has(i) || down.has(i));
      shape.classList.toggle("picked", i === node);
      shape.setAttribute("aria-pressed", String(i === node));
    });
    shapes.edges.forEach((shape, i) => {
      shape.classList.toggle("lit", i < state.shown && inside(edges[i].source, edges[i].target));
    });
    shapes.carries.forEach((shape, i) => shape.classList.toggle("lit", inside(...facts.carries[i])));
    const others = (found) => [...found].filter((other) => other !== node && isNode(other)).length;
    tell(node, others(up), others(down));
  }

  function lines(list, name) {
    const table = element("table");
    list.slice(0, 8).forEach((edge) => {
      const row = element("tr");
      row.append(element("td", name(edge), "mono"), element("td", format(edge.score), "number"));
      table.append(row);
    });
    return table;
  }

  function tell(node, up, down) {
    const box = document.getElementById("picked");
    box.replaceChildren();
    if (node < 0) {
      box.append(element("p", box.dataset.hint, "soft"));
      return;
    }
    box.append(element("h3", nameOf(node), "mono"), element("p", `${plural(up, "ancestor")}, ${plural(down, "descendant")}`));
    const shown = edges.slice(0, state.shown);
    const into = shown.filter((edge) => edge.target === node);
    const out = shown.filter((edge) => edge.source === node);
    const reads = (edge) => `${nodes[edge.source].site} → ${edge.port}`;
    for (const [title, list, name] of [["reads", into, reads], ["is read by", out, (edge) => edge.receiver]]) {
      if (!list.length) continue;
      const rest = list.length > 8 ? `, the first 8 of ${list.length}` : "";
      box.append(element("h4", title + rest), lines(list, name));
    }
  }

  // ---- pointer ------------------------------------------------------------------------------------------------------

  const STEPS = 20;
  const curves = shapes.edges.map((shape) => {
    const [ax, ay, bx, by, cx, cy, dx, dy] = shape.getAttribute("d").match(/-?[\d.]+/g).map(Number);
    return Array.from({ length: STEPS + 1 }, (_, i) => {
      const t = i / STEPS;
      const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
      return [a * ax + b * bx + c * cx + d * dx, a * ay + b * by + c * cy + d * dy];
    });
  });

  function distance([x, y], [ax, ay], [bx, by]) {
    const length = (bx - ax) ** 2 + (by - ay) ** 2 || 1;
    const share = Math.max(0, Math.min(1, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length));
    return Math.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay));
  }

  function nearest(point) {
    let best = [-1, 7]; // pixels: thin curves are hard to hit
    for (let rank = 0; rank < state.shown; rank++) {
      if (state.picked >= 0 && !shapes.edges[rank].classList.contains("lit")) continue;
      for (let i = 0; i < STEPS; i++) {
        const far = distance(point, curves[rank][i], curves[rank][i + 1]);
        if (far < best[1]) best = [rank, far];
      }
    }
    return best[0];
  }

  function heat(rank) {
    if (rank === state.hot) return;
    shapes.edges[state.hot]?.classList.remove("hot");
    shapes.edges[rank]?.classList.add("hot");
    state.hot = rank;
  }

  function tipNode(node) {
    const shown = edges.slice(0, state.shown);
    const counts = [shown.filter((edge) => edge.target === node), shown.filter((edge) => edge.source === node)];
    tip.replaceChildren(element("b", nameOf(node)));
    tip.append(element("div", `${plural(counts[0].length, "edge")} in, ${counts[1].length} out`, "soft"));
  }

  function tipEdge(rank) {
    const line = element("div");
    line.append(element("span", format(edges[rank].score), "value"), element("span", ` · number ${rank + 1} ${facts.order}`, "soft"));
    tip.replaceChildren(element("b", edgeName(edges[rank])), line);
  }

  function follow(event) {
    const node = shapes.nodes.indexOf(event.target.closest(".node"));
    const box = svg.getBoundingClientRect();
    const zoom = svg.viewBox.baseVal.width / box.width;
    const rank = node < 0 ? nearest([(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom]) : -1;
    heat(rank);
    if (node < 0 && rank < 0) {
      tip.className = "";
      return;
    }
    if (node < 0) tipEdge(rank);
    else tipNode(node);
    page.showTip(event.clientX, event.clientY);
  }

  // ---- keyboard -----------------------------------------------------------------------------------------------------

  const middles = shapes.nodes.map((shape) => shape.getAttribute("transform").match(/-?[\d.]+/g).map(Number));
  const WAY = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

  function settle() {
    // One node can be reached by Tab, the others from there by arrows.
    const there = shapes.nodes.findIndex((shape) => shape.tabIndex === 0 && !shape.hasAttribute("display"));
    const first = there >= 0 ? there : shapes.nodes.findIndex((_, node) => visible(node));
    shapes.nodes.forEach((shape, node) => shape.setAttribute("tabindex", node === first ? "0" : "-1"));
  }

  function neighbour(node, key) {
    const [right, down] = WAY[key];
    let best = [node, Infinity];
    middles.forEach(([x, y], other) => {
      const [dx, dy] = [x - middles[node][0], y - middles[node][1]];
      const along = dx * right + dy * down;
      const across = Math.abs(right ? dy : dx);
      if (!visible(other) || along < 8 || (right && across > 8)) return;
      const cost = along + 3 * across;
      if (cost < best[1]) best = [other, cost];
    });
    return best[0];
  }

  function speak(node) {
    const box = shapes.nodes[node].getBoundingClientRect();
    tipNode(node);
    page.showTip(box.right, box.bottom);
    live.textContent = tip.textContent;
  }

  function press(event) {
    const node = shapes.nodes.indexOf(event.target.closest(".node"));
    if (node < 0) return;
    if (event.key === "Enter" || event.key === " ") pick(state.picked === node ? -1 : node);
    else if (event.key in WAY) {
      const next = neighbour(node, event.key);
      shapes.nodes[node].setAttribute("tabindex", "-1");
      shapes.nodes[next].setAttribute("tabindex", "0");
      shapes.nodes[next].focus();
      speak(next);
    } else return;
    event.preventDefault();
    if (event.key === "Enter" || event.key === " ") live.textContent = document.getElementById("picked").innerText;
  }

  function wirePicture() {
    svg.setAttribute("role", "group");
    shapes.nodes.forEach((shape, node) => {
      shape.setAttribute("role", "button");
      shape.setAttribute("aria-label", nameOf(node));
      shape.addEventListener("focus", () => shape.matches(":focus-visible") && speak(node));
      shape.addEventListener("blur", () => (tip.className = ""));
    });
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerleave", () => (heat(-1), (tip.className = "")));
    svg.addEventListener("click", (event) => {
      const node = shapes.nodes.indexOf(event.target.closest(".node"));
      pick(node === state.picked ? -1 : node);
    });
    svg.addEventListener("keydown", press);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      pick(-1);
      heat(-1);
      tip.className = "";
    });
    const slider = document.getElementById("slider");
    slider.addEventListener("input", () => show(facts.stops[Number(slider.value)]));
    onClick("button[data-count]", (button) => {
      slider.value = String(facts.stops.indexOf(Number(button.dataset.count)));
      show(Number(button.dataset.count));
    });
    slider.value = String(facts.stops.indexOf(facts.size)); // a browser may restore another one
    show(facts.size);
  }

  // ---- download -----------------------------------------------------------------------------------------------------

  function csv() {
    const body = edges.map(({ source, receiver, score }, rank) => {
      const names = [nodes[source].site, receiver, nodes[source].place].map(quoted);
      return [rank + 1, ...names, score ?? "", rank < facts.kept ? 1 : 0].join(",");
    });
    return ["rank,sender,receiver,place,score,in_circuit", ...body].join("\n") + "\n";
  }

  if (svg) wirePicture();
  onClick("button[data-save='edges']", () => save(`${facts.name}.csv`, "text/csv", csv()));
  done();
})();
