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
    const taken = found.guessed.filter((side) => found[side].length);
    const how = taken.length ? `The ${taken.join(" and the ")} answer is what its run says next; type another if you mean another.` : "";
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

  // `values` in rows, one a query; `most` is what full colour means.
  function pattern(values, most, words, title) {
    const figure = element("figure");
    const canvas = element("canvas");
    const labels = words.map((word, place) => `${place} ${blanks(word)}`);
    const told = strongest(values, labels);
    const box = board.draw(canvas, { values: values.flat(), one: most, labels, strong: () => true, width: 400 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}: ${told}`);
    const says = element("p", told, "soft");
    canvas.addEventListener("pointermove", (event) => {
      const at = board.cellAt(canvas, box, event);
      says.textContent = at ? `${labels[at.row]} → ${labels[at.column]}: ${format(values[at.row][at.column], 2)}` : told;
    });
    figure.append(element("h3", title), canvas, says);
    return figure;
  }

  function strongest(values, labels) {
    const last = values[values.length - 1];
    const order = last.map((weight, key) => [weight, key]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    return `the last token attends to ${order.map(([weight, key]) => `${labels[key]} ${format(weight, 2)}`).join(", ")}`;
  }

  const RUNS = [["clean", "clean run"], ["corrupt", "corrupted run"]];

  // The weights of each run, as they are or times the length of what the head writes for each key.
  function weightsOf(found, weighting) {
    const size = (run, key) => (weighting === "value" ? found.written[run][key] : 1);
    return RUNS.map(([run]) => found[run].map((row) => row.map((byte, key) => (byte / found.one) * size(run, key))));
  }

  const chosen = { weighting: "pattern" }; // stays from head to head

  function choice(weightings, draw) {
    const label = element("label", "colour ", "soft");
    const select = element("select");
    for (const [name, words] of Object.entries(weightings)) {
      const option = element("option", words);
      option.value = name;
      select.append(option);
    }
    select.value = chosen.weighting;
    select.addEventListener("change", () => draw((chosen.weighting = select.value)));
    label.append(select);
    return label;
  }

  function attention(found) {
    const both = element("div", "", "patterns");
    const how = element("p", "", "soft");
    const draw = (weighting) => {
      const weights = weightsOf(found, weighting);
      const most = weighting === "value" ? weights.flat(2).reduce((one, other) => Math.max(one, other), 1e-30) : 1;
      both.replaceChildren(...RUNS.map(([run, title], place) => pattern(weights[place], most, found.tokens[run], title)));
      how.textContent = weighting === "value" ? `Times the length of what the head writes for that key alone; full colour is ${format(most, 2)}.` : "";
    };
    draw(found.written ? chosen.weighting : "pattern");
    return [
      element("h3", `Attention of layer ${found.layer}, head ${found.head}: queries down, keys across`),
      ...(found.written ? [choice(found.weightings, draw)] : []),
      how,
      both,
    ];
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
