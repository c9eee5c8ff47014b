// The page at /: one question, several adapters side by side. No framework, no build step.
"use strict";

const find = (id) => document.getElementById(id);
const running = new Set();
const templates = new Map();  // model -> its prompt template with several columns

// --- theme: the system's, until the button says otherwise
function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  find("theme").setAttribute("aria-pressed", String(dark));
}
function remember(name, value) { try { localStorage.setItem(name, value); } catch { /* private */ } }
function recall(name) { try { return localStorage.getItem(name); } catch { return null; } }
const kept = recall("theme");
theme(kept === null ? matchMedia("(prefers-color-scheme: dark)").matches : kept === "dark");
find("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  theme(dark);
  remember("theme", dark ? "dark" : "light");
});

// --- the server, with a key where it wants one
async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (find("key").value) headers.Authorization = "Bearer " + find("key").value;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) find("key-row").hidden = false;
  if (!answer.ok) {
    let text = answer.status + " " + answer.statusText;
    try { text = (await answer.json()).error.message; } catch { /* not ours */ }
    throw new Error(text);
  }
  return answer;
}

function made(tag, text, parent) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

async function models() {
  const listed = (await (await call("/v1/models")).json()).data;
  find("models").replaceChildren();
  templates.clear();
  find("cards").replaceChildren();
  listed.forEach((model, number) => {
    const label = made("label", undefined, find("models"));
    const box = made("input", undefined, label);
    box.type = "checkbox";
    box.value = model.id;
    box.checked = number < 2;
    label.append(model.id);
    box.addEventListener("change", columns);
    const card = model.lorakit, row = made("tr", undefined, find("cards"));
    made("th", model.id, row).scope = "row";
    made("td", card.version || (card.kind === "base" ? "the base" : "a folder"), row);
    made("td", card.ranks ? [...new Set(card.ranks)].join("–") : "", row);
    made("td", card.parameters ? card.parameters.toLocaleString("en") : "", row);
    made("td", card.headline ? card.headline.text : "", row);
    made("td", card.prompt ? card.prompt.template.replaceAll("\n", "⏎") : "", row);
    if (card.prompt && card.prompt.columns.length > 1) templates.set(model.id, card.prompt);
  });
  columns();
}

// --- what is asked: a text, and the columns of the prompt templates that have several
const chosen = () =>
  [...document.querySelectorAll("#models input:checked")].map((box) => box.value);
const template = (model) => find("plain").checked ? undefined : templates.get(model);

function columns() {
  const models = chosen(), before = new Map();
  for (const field of find("columns").querySelectorAll("textarea")) before.set(field.name, field.value);
  const names = new Set(models.flatMap((model) => template(model)?.columns ?? []));
  find("columns").replaceChildren();
  for (const name of names) {
    const label = made("label", name, find("columns")), field = made("textarea", undefined, label);
    field.name = name;
    field.rows = 2;
    field.required = true;
    field.value = before.get(name) ?? "";
  }
  find("columns-set").hidden = !names.size;
  const typed = !models.length || models.some((model) => !template(model));
  find("question-row").hidden = !typed;
  find("question").required = typed;
}

function asked(model, question) {
  const needed = template(model);
  if (!needed) return question;
  const fields = [...find("columns").querySelectorAll("textarea")];
  return JSON.stringify(Object.fromEntries(
    fields.filter((field) => needed.columns.includes(field.name))
      .map((field) => [field.name, field.value])));
}

async function reports() {
  const listed = (await (await call("/v1/lorakit/reports")).json()).data;
  find("reports-section").hidden = !listed.length;
  find("reports").replaceChildren();
  for (const path of listed) {
    const link = made("a", path, made("li", undefined, find("reports")));
    link.href = "/reports/" + path.split("/").map(encodeURIComponent).join("/");
    link.addEventListener("click", async (event) => {
      if (!find("key").value) return;  // a link cannot carry a key: fetch it, then show it
      event.preventDefault();
      location.href = URL.createObjectURL(await (await call(link.getAttribute("href"))).blob());
    });
  }
}

async function status() {
  try {
    const now = await (await call("/v1/lorakit/status")).json();
    find("most").max = now.max_output;
    if (Number(find("most").value) > now.max_output) find("most").value = now.max_output;
    find("status").textContent =
      now.base + " · " + now.tokens_per_second + " tokens/s · " + now.running + " running, " +
      now.waiting + " waiting · " + now.resident_adapters + " adapters ready";
  } catch (error) {
    find("status").textContent = error.message;
  }
}

// --- asking
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(model, question) {
  const box = made("article", undefined, find("answers"));
  box.setAttribute("aria-busy", "true");
  made("h3", model, box);
  const text = made("pre", "", box), foot = made("footer", "waiting…", box);
  const abort = new AbortController();
  running.add(abort);
  const began = performance.now();
  let first = null, tokens = 0;
  try {
    const answer = await call("/v1/chat/completions", {
      method: "POST",
      signal: abort.signal,
      body: JSON.stringify({
        model, messages: [{ role: "user", content: asked(model, question) }], stream: true,
        ...(find("plain").checked ? { prompt_template: false } : {}),
        stream_options: { include_usage: true },
        max_tokens: Number(find("most").value), temperature: Number(find("temperature").value),
      }),
    });
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      const piece = event.choices.length ? event.choices[0].delta.content : "";
      if (piece) {
        first ??= performance.now();
        text.textContent += piece;
      }
    }
    const seconds = (performance.now() - began) / 1000;
    const wait = ((first ?? performance.now()) - began) / 1000;
    foot.textContent = tokens + " tokens in " + seconds.toFixed(1) + " s, the first after " +
      wait.toFixed(2) + " s";
  } catch (error) {
    foot.textContent = error.name === "AbortError" ? "stopped" : error.message;
  } finally {
    running.delete(abort);
    box.setAttribute("aria-busy", "false");
    // Read out once, whole: a screen reader would stumble over every token.
    box.setAttribute("aria-live", "polite");
    text.textContent = text.textContent;
    find("stop").disabled = running.size === 0;
    find("send").disabled = running.size > 0;
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const models = chosen(), question = find("question").value;
  const lacks = !question.trim() && models.some((model) => !template(model));
  const empty = [...find("columns").querySelectorAll("textarea")].find((field) => !field.value.trim());
  find("problem").textContent = !models.length ? "Choose a model." :
    lacks ? "Type a question." : empty ? "Fill in " + empty.name + "." : "";
  if (find("problem").textContent) return;
  find("answers").replaceChildren();
  find("send").disabled = true;
  find("stop").disabled = false;
  models.forEach((model) => ask(model, question));
});
find("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
find("plain").addEventListener("change", columns);
find("columns").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
find("stop").addEventListener("click", () => running.forEach((abort) => abort.abort()));
find("filter").addEventListener("input", () => {
  const wanted = find("filter").value.toLowerCase();
  let shown = 0;
  for (const label of find("models").children) {
    label.hidden = !label.textContent.toLowerCase().includes(wanted);
    shown += !label.hidden;
  }
  find("none").hidden = shown > 0;
});
find("key").addEventListener("change", open);

async function open() {
  find("problem").textContent = "";
  try {
    await models();
    await reports();
  } catch (error) {
    find("problem").textContent = error.message;
  }
}
status();
open();
setInterval(status, 2000);
