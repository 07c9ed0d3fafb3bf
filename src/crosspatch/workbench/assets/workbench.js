// The page's life: what is typed becomes a pair, a pair becomes a sweep, a cell becomes a patch, an answer is kept.
"use strict";
(() => {
  const { element, format } = page;
  const at = (id) => document.getElementById(id);
  const PAUSE = 450; // milliseconds without a key after which a pair is read
  const HINT = at("sheet").textContent; // while there is no pair
  const LOST = 2500; // milliseconds without a connection after which that is told
  // `shown` is the question of the map on the page: its cells are looked at under that one, whatever is typed since.
  // `mine`: the sweep was begun by this window, which ends it when it begins another.
  const state = { model: null, sheet: null, sweep: null, mine: false, shown: null, stream: null, lost: null, chosen: [] };
  // `asked` is what the server read, `read` the form's content then; `given` is a kept pair that stands for the content
  // `key` of the form, which cannot write every answer.
  Object.assign(state, { reading: 0, looking: 0, asking: false, read: "", asked: null, given: null });

  // ---- the question -----------------------------------------------------------------------------------------------

  const answersOf = (id) => at(id).value.split("|").filter((text) => text.trim());

  function typed() {
    const answers = { right: answersOf("right"), wrong: answersOf("wrong"), answers: at("answers").value };
    return { clean: at("clean").value, corrupt: at("corrupt").value, ...answers };
  }

  // The pair as the server read it, answers filled in: never a part of it with what was typed since.
  const pair = () => ({ ...state.asked, right: state.sheet.right, wrong: state.sheet.wrong });
  const direction = () => document.querySelector("input[name=direction]:checked").value;
  const kinds = () => [...document.querySelectorAll("#kinds input:checked")].map((box) => box.value);
  const sites = () => at("sites").value.trim() || kinds().join(", ");

  function asked(chosen) {
    return { pair: pair(), sites: chosen, direction: direction(), metric: at("metric").value || null };
  }

  function stale() {
    if (!state.shown) return;
    const read = state.sheet && state.read === JSON.stringify(typed());
    const now = read ? JSON.stringify(ordered({ ...asked(""), pair: pair() })) : "";
    at("stale").classList.toggle("gone", now === JSON.stringify(ordered({ ...state.shown, sites: "" })));
  }

  const ordered = ({ pair: own, direction: way, metric }) => {
    return [own.clean, own.corrupt, own.right, own.wrong, own.answers, way, metric ?? null];
  };

  function remember() {
    stale();
    const question = { ...typed(), direction: direction(), metric: at("metric").value, kinds: kinds(), sites: at("sites").value };
    api.keep({ question, sweep: state.sweep, mine: state.mine, given: state.given });
  }

  function fill(question) {
    at("clean").value = question.clean;
    at("corrupt").value = question.corrupt;
    at("right").value = question.right.join("|");
    at("wrong").value = question.wrong.join("|");
    if (question.answers) at("answers").value = question.answers;
    if (question.direction) document.querySelector(`input[name=direction][value=${CSS.escape(question.direction)}]`).checked = true;
    if (question.metric !== undefined) at("metric").value = question.metric ?? "";
    if (question.kinds) document.querySelectorAll("#kinds input").forEach((box) => (box.checked = !box.disabled && question.kinds.includes(box.value)));
    if (question.sites !== undefined) at("sites").value = question.sites;
  }

  async function read() {
    const question = typed();
    const key = JSON.stringify(question);
    const number = ++state.reading; // what is being read of another question does not count any more
    if (!question.clean || !question.corrupt) {
      learn(null, "", null, HINT);
      return;
    }
    if (key === state.read && state.sheet) {
      at("run").disabled = false;
      stale();
      return;
    }
    const asking = state.given?.key === key ? state.given.pair : question;
    let [read, problem] = [null, ""];
    try {
      read = await api.post("pair", asking);
    } catch (error) {
      problem = error.message;
    }
    if (number !== state.reading) return; // something newer was typed
    api.complain(problem);
    learn(read, key, asking, "This pair cannot be read; the reason stands at the top.");
  }

  // Take a pair as the server read it, `found`; without one, `hint` says why there is none.
  function learn(found, key, asking, hint) {
    Object.assign(state, { read: key, asked: asking, sheet: found?.aligned ? found : null });
    at("sheet").replaceChildren(...(found ? views.sheet(found) : [element("p", hint, "soft")]));
    at("run").disabled = !state.sheet;
    stale();
  }

  let timer = null;
  function later() {
    at("run").disabled = true;
    remember();
    clearTimeout(timer);
    timer = setTimeout(read, PAUSE);
  }

  // ---- sweeps ---------------------------------------------------------------------------------------------------------

  async function run(event) {
    event.preventDefault();
    clearTimeout(timer);
    await read();
    if (state.asking) return; // until it is answered: two clicks are one sweep
    if (!state.sheet || state.read !== JSON.stringify(typed())) return; // something newer is being read
    if (!sites()) {
      api.complain("Tick at least one kind of site, or type a selection.");
      return;
    }
    at("run").disabled = state.asking = true;
    const before = state.mine && !at("cancel").disabled ? state.sweep : null;
    const made = await api.attempt(() => api.post("sweeps", asked(sites())));
    state.asking = false;
    at("run").disabled = !state.sheet;
    if (!made) return;
    if (before) await api.attempt(() => api.remove(`sweeps/${before}`));
    follow(made, true);
  }

  function follow(made, mine) {
    state.stream?.close();
    found();
    state.sweep = made.sweep;
    state.mine = mine;
    state.shown = made.asked;
    state.looking++;
    empty();
    remember();
    maps.show(made, { onCell: look, onSelect: select });
    const total = made.sites.length;
    at("finding").textContent = "";
    at("strongest").replaceChildren();
    at("cautions").replaceChildren(...made.undrawn.map((kind) => element("li", `${kind}: too many sites for a map.`)));
    at("keep-map").querySelector("input").value = "";
    legend(made.ends.share);
    ["legend", "how", "progress"].forEach((id) => at(id).classList.remove("gone"));
    at("keep-map").classList.add("gone");
    at("cancel").disabled = false;
    at("progress").value = 0;
    tell(made.ahead ? `waiting: ${made.ahead} before this` : `${total.toLocaleString("en")} sites`);
    listen(new EventSource(`api/sweeps/${made.sweep}/events`), made);
  }

  function legend([low, high]) {
    at("low").textContent = low;
    at("high").textContent = high;
  }

  function tell(text) {
    at("status").textContent = text;
  }

  function listen(stream, { sites: { length: total }, ends }) {
    state.stream = stream;
    const on = (name, act) =>
      stream.addEventListener(name, (event) => {
        if (state.stream !== stream) return;
        found();
        act(JSON.parse(event.data));
      });
    on("begun", (found) => {
      maps.begin(found);
      legend(found.base === found.source ? ends.raw : ends.share);
    });
    on("cells", (found) => {
      maps.add(found);
      at("progress").value = found.done / total;
      tell(`${found.done.toLocaleString("en")} of ${total.toLocaleString("en")} sites`);
    });
    on("done", (found) => {
      maps.end(found);
      finish(`${total.toLocaleString("en")} sites in ${format(found.seconds, 2)} s · colours to ± ${format(found.limit, 2)}`);
      at("finding").textContent = found.finding;
      strongest(found.top);
      at("cautions").append(...found.cautions.map((text) => element("li", text)));
      at("keep-map").classList.remove("gone");
      at("keep-map").dataset.result = found.result;
    });
    on("cancelled", (found) => finish(`cancelled: ${found.done.toLocaleString("en")} of ${found.of.toLocaleString("en")} sites are there`));
    on("failed", (found) => {
      finish("failed");
      api.complain(found.error);
    });
    // Streams end after some seconds and begin again by themselves; one that does not is told.
    stream.onopen = () => state.stream === stream && found();
    stream.onerror = () => {
      if (state.stream !== stream) return;
      if (stream.readyState === EventSource.CLOSED) finish("the connection was lost");
      else state.lost ??= setTimeout(() => tell("the connection was lost, trying again… Was the workbench ended?"), LOST);
    };
  }

  // The strongest sites by name, each a way in: also of kinds with too many sites for a map.
  function strongest(top) {
    const buttons = top.map(({ site, effect, raw }) => {
      const name = maps.nameOf(site);
      const button = element("button", `${name} ${format(effect ?? raw, 2)}`, "mono");
      button.type = "button";
      button.addEventListener("click", () => look({ site: name, kind: name.split(/[[@]/)[0] }));
      return button;
    });
    at("strongest").replaceChildren(...(buttons.length ? [element("span", "Strongest:", "soft"), ...buttons] : []));
  }

  function found() {
    clearTimeout(state.lost);
    state.lost = null;
  }

  function finish(text) {
    state.stream.close();
    found();
    at("cancel").disabled = true;
    at("progress").classList.add("gone");
    tell(text);
  }

  // ---- inside a cell -----------------------------------------------------------------------------------------------------

  function empty() {
    const hint = "Click a cell of a map: what the model says when that site is patched, beside both runs.";
    at("inside").replaceChildren(element("p", hint, "soft"));
    at("attention").replaceChildren();
    at("lens").replaceChildren();
  }

  async function look({ site, kind }) {
    const number = ++state.looking;
    empty();
    const question = { ...state.shown, sites: site };
    const inside = await patch(question, number);
    if (!inside) return;
    const found = /^([\w.]+)(?:\[(\d+)(?:, (\d+|all))?\])?(?:@(-?\w+))?$/.exec(site);
    if (!found || number !== state.looking) return;
    const [, , layer, head, place] = found;
    const whole = place === undefined || place === "all" || place === "end";
    const position = whole ? inside.length - 1 : (Number(place) + inside.length) % inside.length;
    if (head !== undefined && head !== "all" && /^attn\.(q|head|pattern)$/.test(kind)) {
      const seen = await api.attempt(() => api.post("attention", { pair: question.pair, layer: Number(layer), head: Number(head) }), at("attention"));
      if (seen && number === state.looking) at("attention").replaceChildren(...views.attention(seen));
    }
    if (Number.isInteger(position)) {
      const decoded = await api.attempt(() => api.post("lens", { pair: question.pair, position }), at("lens"));
      const upper = layer === undefined ? 0 : Number(layer) + (/^(resid\.pre|embed|attn\.in)$/.test(kind) ? 0 : 1);
      if (decoded && number === state.looking) at("lens").replaceChildren(...views.lens(decoded, upper));
    }
  }

  async function patch(question, number) {
    const found = await api.attempt(() => api.post("patch", question));
    if (!found || number !== state.looking) return null;
    const tools = element("p", "", "row");
    const note = element("input", "", "note");
    note.placeholder = "a note, if you like";
    note.setAttribute("aria-label", "note");
    const keep = element("button", "Keep this patch");
    keep.addEventListener("click", () => store(found.result, note));
    tools.append(note, keep);
    at("inside").replaceChildren(...views.patched(found), tools);
    return found;
  }

  function select(chosen) {
    state.chosen = chosen;
    at("joint").classList.toggle("gone", chosen.length === 0);
    at("chosen").textContent = `${chosen.length} site${chosen.length === 1 ? "" : "s"} selected`;
  }

  async function together() {
    const number = ++state.looking;
    empty();
    await patch({ ...state.shown, sites: state.chosen.join(", ") }, number);
    at("cell").scrollIntoView({ block: "nearest" });
  }

  // ---- keeping ------------------------------------------------------------------------------------------------------------

  async function store(result, note) {
    const kept = await api.attempt(() => api.post("findings", { result, note: note.value }));
    if (!kept) return;
    note.value = "";
    await api.attempt(() => findings.refresh(again));
  }

  async function again(kept) {
    fill({ ...kept.asked.pair, direction: kept.asked.direction, metric: kept.asked.metric, sites: kept.joint ? "" : kept.asked.sites });
    Object.assign(state, { read: "", given: { key: JSON.stringify(typed()), pair: kept.asked.pair } });
    remember();
    await read();
    if (!state.sheet) return;
    empty();
    if (kept.joint) patch(kept.asked, ++state.looking);
    else at("question").requestSubmit();
  }

  // The colours of the scale, from the style sheet's own levels.
  function ramp() {
    const svg = page.shape("svg", { width: 205, height: 12, viewBox: "0 0 205 12" });
    for (let level = -20; level <= 20; level++) {
      const name = (level < 0 ? "n" : "p") + Math.abs(level);
      svg.append(page.shape("path", { class: name, d: `M${(level + 20) * 5} 0h5v12h-5z` }));
    }
    at("ramp").replaceChildren(svg);
  }

  // ---- start --------------------------------------------------------------------------------------------------------------

  function chips() {
    const { family, layers, heads, device, dtype } = state.model;
    const shown = [["family", family], ["layers", layers], ["heads", heads], ["device", device], ["dtype", dtype]];
    at("chips").replaceChildren(
      ...shown.map(([name, value]) => {
        const made = element("li");
        made.append(element("span", `${name} `), String(value));
        return made;
      })
    );
  }

  function choices() {
    at("metric").append(new Option("the pair's own", ""));
    state.model.metrics.forEach(({ name, note }) => {
      const made = new Option(name, name);
      made.title = note;
      at("metric").append(made);
    });
    state.model.kinds.forEach(({ kind, unit, refused }) => {
      if (unit === "neuron") return; // thousands a layer: chosen by a selection
      const label = element("label", "", "choice");
      const box = element("input");
      box.type = "checkbox";
      box.value = kind;
      box.checked = kind === "resid.post";
      box.disabled = Boolean(refused);
      label.title = refused;
      label.append(box, ` ${kind}`, element("span", unit ? " heads" : "", "soft"));
      at("kinds").append(label);
    });
  }

  async function examples() {
    const found = await api.attempt(() => api.get("examples"));
    found?.forEach((each, place) => at("example").append(new Option(`${each.task}: ${each.clean.slice(0, 48)}…`, place)));
    at("example").addEventListener("change", () => {
      if (at("example").value === "") return;
      fill(found[Number(at("example").value)]);
      later();
    });
  }

  async function restore() {
    const kept = api.recall();
    try {
      fill(kept.question);
    } catch {
      return; // nothing is remembered, or nothing that this page wrote
    }
    state.given = kept.given ?? null;
    await read();
    if (!kept.sweep) return;
    try {
      // A window that was opened out of another remembers its map too, and must not end it.
      const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
      follow(await api.get(`sweeps/${kept.sweep}`), again && Boolean(kept.mine));
    } catch {
      tell("the last map is not held any more: patch again");
    }
  }

  async function start() {
    state.model = await api.attempt(() => api.get("model"));
    if (!state.model) return;
    at("model").textContent = state.model.name;
    document.title = `${state.model.name} · crosspatch workbench`;
    chips();
    choices();
    ramp();
    at("run").disabled = true;
    empty();
    ["clean", "corrupt", "right", "wrong", "answers"].forEach((id) => at(id).addEventListener("input", later));
    ["kinds", "metric", "sites"].forEach((id) => at(id).addEventListener("change", remember));
    document.querySelectorAll("input[name=direction]").forEach((radio) => radio.addEventListener("change", remember));
    at("question").addEventListener("submit", run);
    // While the button waits for the pair to be read, a browser would not take Enter for it.
    at("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.target.tagName !== "INPUT" || event.target.type === "checkbox" || event.isComposing) return;
      event.preventDefault();
      at("question").requestSubmit();
    });
    at("cancel").addEventListener("click", () => api.attempt(() => api.remove(`sweeps/${state.sweep}`)));
    at("together").addEventListener("click", together);
    at("none").addEventListener("click", maps.none);
    at("keep-map").querySelector("button").addEventListener("click", () => store(at("keep-map").dataset.result, at("keep-map").querySelector("input")));
    await api.attempt(() => findings.refresh(again));
    await examples();
    await restore();
    document.documentElement.dataset.ready = "yes";
  }

  start();
})();
