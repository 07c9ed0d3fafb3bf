// How the page speaks to the server: questions as JSON, each with this tab's name so that tabs take turns.
"use strict";
const api = (() => {
  const tab = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
  const notice = document.getElementById("notice");

  function complain(text) {
    notice.textContent = text;
    notice.classList.toggle("gone", !text);
  }

  async function send(method, path, body) {
    const headers = { "X-Tab": tab };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(`api/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new Error("The workbench does not answer. Was it ended in the terminal?");
    }
    const content = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    if (!answer.ok) throw new Error(content.error);
    return content;
  }

  // Run something that asks the server; what goes wrong is shown, at the top or in a place of its own, and changes
  // nothing else. An error stands until something that the user does goes well.
  async function attempt(act, place = null) {
    try {
      const found = await act();
      if (!place) complain("");
      return found;
    } catch (problem) {
      if (place) place.replaceChildren(page.element("p", problem.message, "soft"));
      else complain(problem.message);
      return null;
    }
  }

  // What this window remembers over a reload; nothing where the browser allows no storage.
  function recall() {
    try {
      return JSON.parse(sessionStorage.question ?? "null");
    } catch {
      return null;
    }
  }

  function keep(content) {
    try {
      sessionStorage.question = JSON.stringify(content);
    } catch {
      // a browser that stores nothing: a reload begins anew
    }
  }

  const get = (path) => send("GET", path);
  const post = (path, body) => send("POST", path, body);
  const remove = (path) => send("DELETE", path);
  return { get, post, remove, attempt, complain, recall, keep };
})();
