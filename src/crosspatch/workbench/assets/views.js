// What is seen of a pair and inside a cell: tokens, distributions, attention, layers decoded. All text is text.
"use strict";
const views = (() => {
  const { element, format } = page;
  const blanks = (token) => (token === null || token === undefined ? "" : token.replaceAll(" ", "·").replaceAll("\n", "⏎"));
  const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

  function table(heads, rows, name = "") {
    const made = element("table", "", name);
    const head = element("tr");
    heads.forEach((text) => head.append(element("th", text)));
    const top = element("thead");
    top.append(head);
    const body = element("tbody");
    body.append(...rows);
    made.append(top, body);
    const scroll = element("div", "", "scroll");
    scroll.append(made);
    return scroll;
  }

  function row(cells, name = "") {
    const made = element("tr", "", name);
    cells.forEach((cell) => {
      const td = element("td");
      if (cell instanceof Node) td.append(cell);
      else td.textContent = cell;
      made.append(td);
    });
    return made;
  }

  const mono = (text) => element("bdi", text, "mono");

  function bar(p, name) {
    const made = element("span", "", `share ${name}`);
    const fill = element("span");
    fill.style.width = `${Math.max(0.5, 100 * p).toFixed(1)}%`;
    made.append(fill, element("i", percent(p)));
    return made;
  }

  // ---- the pair ----------------------------------------------------------------------------------------------------

  function tokens(list) {
    const made = element("ol", "", "tokens");
    const first = element("li");
    first.append(element("span", "\u00a0"), element("bdi", "clean"), element("bdi", "corrupted"));
    made.append(first);
    list.forEach((token, place) => {
      const item = element("li", "", token.differs ? "differs" : "");
      item.append(element("span", String(place)), element("bdi", blanks(token.clean) || "–"), element("bdi", blanks(token.corrupt) || "–"));
      made.append(item);
    });
    return made;
  }

  function sheet(found) {
    const parts = [tokens(found.tokens)];
    if (!found.aligned) return [...parts, warnings([found.reason])];
    if (found.cautions.length) parts.push(warnings(found.cautions));
    const how = found.guessed ? "Answers are what each run says next; type others if you mean others." : "";
    const answers = found.answers.map((each) =>
      row([each.side, mono(blanks(each.token)), bar(each.clean, "source"), bar(each.corrupt, "base")])
    );
    parts.push(table(["answer", "token", "clean run", "corrupted run"], answers));
    parts.push(element("p", `${found.metric}: clean ${format(found.measured.clean)}, corrupted ${format(found.measured.corrupt)}. ${how}`));
    const more = element("details");
    const sides = element("div", "", "two");
    more.append(element("summary", "What each run says next"), sides);
    for (const [name, title] of [["clean", "After the clean prompt"], ["corrupt", "After the corrupted prompt"]]) {
      const rows = found.runs[name].map((each) => row([mono(blanks(each.token)), bar(each.p, name === "clean" ? "source" : "base"), format(each.logit, 2)]));
      const side = element("div");
      side.append(element("h3", title), table(["token", "probability", "logit"], rows));
      sides.append(side);
    }
    return [...parts, more];
  }

  function warnings(texts) {
    const made = element("ul", "", "warnings");
    texts.forEach((text) => made.append(element("li", text)));
    return made;
  }

  // ---- a patch -------------------------------------------------------------------------------------------------------

  function patched(found) {
    const many = found.sites.length;
    const what = many === 1 ? found.sites[0] : `${many} sites together`;
    const names = { base: found.direction === "denoise" ? "corrupted" : "clean", source: found.direction === "denoise" ? "clean" : "corrupted" };
    const share = found.effect === null ? "" : ` = ${format(found.effect)} of the gap`;
    const parts = [
      element("h3", what, "mono"),
      element("p", `${found.metric}: ${format(found.base)} → ${format(found.patched)}${share} (${names.source} run: ${format(found.source)}).`),
    ];
    if (many > 1) {
      const list = element("details");
      list.append(element("summary", "which"), element("p", found.sites.join(", "), "mono"));
      parts.push(list);
    }
    const rows = found.tokens.map((each) => row([mono(blanks(each.token)), bar(each.base, "base"), bar(each.patched, "patched"), bar(each.source, "source")]));
    parts.push(table(["next token", `base (${names.base})`, "patched", `source (${names.source})`], rows, "beside"));
    if (found.cautions.length) parts.push(warnings(found.cautions));
    parts.push(element("p", `${format(found.seconds, 2)} s`, "soft"));
    return parts;
  }

  // ---- attention -------------------------------------------------------------------------------------------------------

  function pattern(values, words, title) {
    const figure = element("figure");
    figure.append(element("h3", title));
    const count = values.length;
    const size = Math.max(2, Math.min(20, Math.floor(300 / count)));
    const edge = size >= 10 ? 84 : 4;
    const canvas = element("canvas");
    const sharp = devicePixelRatio || 1;
    const full = count * size + edge;
    canvas.width = canvas.height = full * sharp;
    canvas.style.width = canvas.style.height = `${full}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}: ${strongest(values, words)}`);
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const style = getComputedStyle(document.documentElement);
    const [ink, line, accent] = ["--ink", "--line", "--accent"].map((name) => style.getPropertyValue(name).trim());
    pen.strokeStyle = line;
    pen.strokeRect(edge - 0.5, 0.5, count * size, count * size);
    values.forEach((weights, query) =>
      weights.forEach((weight, key) => {
        pen.globalAlpha = weight;
        pen.fillStyle = accent;
        pen.fillRect(edge + key * size, query * size, size - (size > 5), size - (size > 5));
      })
    );
    pen.globalAlpha = 1;
    if (edge > 10) labels(pen, words, { size, edge, ink, count });
    const says = element("p", strongest(values, words), "soft");
    canvas.addEventListener("pointermove", (event) => {
      const seen = canvas.getBoundingClientRect();
      const key = Math.floor((event.clientX - seen.left - edge) / size);
      const query = Math.floor((event.clientY - seen.top) / size);
      const weight = values[query]?.[key];
      says.textContent = weight === undefined ? strongest(values, words) : `${query} ${blanks(words[query])} → ${key} ${blanks(words[key])}: ${format(weight)}`;
    });
    figure.append(canvas, says);
    return figure;
  }

  function labels(pen, words, { size, edge, ink, count }) {
    pen.fillStyle = ink;
    pen.font = "10px ui-sans-serif, system-ui, sans-serif";
    pen.textBaseline = "middle";
    words.forEach((word, place) => {
      const text = `${place} ${blanks(word)}`.slice(0, 13);
      pen.textAlign = "right";
      pen.fillText(text, edge - 4, (place + 0.5) * size);
      pen.save();
      pen.translate(edge + (place + 0.5) * size, count * size + 4);
      pen.rotate(-Math.PI / 2);
      pen.fillText(text, 0, 0);
      pen.restore();
    });
  }

  function strongest(values, words) {
    const last = values[values.length - 1];
    const order = last.map((weight, key) => [weight, key]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    return `the last token attends to ${order.map(([weight, key]) => `${key} ${blanks(words[key])} ${format(weight, 2)}`).join(", ")}`;
  }

  function attention(found) {
    const both = element("div", "", "patterns");
    both.append(pattern(found.clean, found.tokens.clean, "clean run"), pattern(found.corrupt, found.tokens.corrupt, "corrupted run"));
    return [element("h3", `Attention of layer ${found.layer}, head ${found.head}: queries down, keys across`), both];
  }

  // ---- lens ---------------------------------------------------------------------------------------------------------------

  function lens(found, layer) {
    const said = (list) => {
      const made = element("span");
      list.slice(0, 3).forEach(({ token, p }) => {
        const one = element("span", "", "said");
        one.append(mono(blanks(token)), element("i", ` ${percent(p)}`, "soft"));
        made.append(one, " ");
      });
      return made;
    };
    const rows = found.layers.map((name, place) => row([name, said(found.clean[place]), said(found.corrupt[place])], place === layer ? "here" : ""));
    rows.reverse();
    const made = element("details");
    made.open = true;
    made.append(element("summary", `Position ${found.position}, decoded at each layer (logit lens)`), table(["", "clean run", "corrupted run"], rows, "lens"));
    return [made];
  }

  return { sheet, patched, attention, lens, blanks };
})();
