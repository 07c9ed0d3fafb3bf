// What was kept: a list that the server holds, with ways out of the workbench.
"use strict";
const findings = (() => {
  const { element } = page;
  const list = document.getElementById("findings");

  function link(text, href, name) {
    const made = element("a", text);
    made.href = href;
    made.download = name;
    return made;
  }

  function item(each, onAgain) {
    const made = element("li");
    made.append(element("b", each.title), element("p", each.finding));
    if (each.note) made.append(element("p", each.note, "note"));
    const tools = element("p", "", "row");
    const again = element("button", "ask again");
    again.addEventListener("click", () => onAgain(each));
    const drop = element("button", "drop");
    drop.addEventListener("click", () => api.attempt(async () => (await api.remove(`findings/${each.name}`), refresh(onAgain))));
    const where = `api/findings/${each.name}`;
    tools.append(again, link("report", `${where}/report`, `${each.name}.html`), link("Python", `${where}/python`, `${each.name}.py`), drop);
    made.append(tools, element("p", each.folder, "mono soft"));
    return made;
  }

  async function refresh(onAgain) {
    const all = await api.get("findings");
    list.replaceChildren(...all.map((each) => item(each, onAgain)));
    document.getElementById("kept-none").classList.toggle("gone", all.length > 0);
    document.getElementById("exports").classList.toggle("gone", all.length === 0);
  }

  return { refresh };
})();
