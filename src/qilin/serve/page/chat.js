"use strict";
// The conversation: images and questions go to /v1/chat/completions, answers arrive as text nodes. Two models may answer
// side by side. Nothing is kept when the tab closes, unless the history is turned on.

const LOW_CONFIDENCE = 0.5;
let models = [], mapless = new Set(); // names; and those of which the server cannot make maps
let turns = []; // {question, images: [url], thumbnails, labels, viewers, answers: [{model, text, meta, error, map}]}
let controller = null;
let readOnly = false;

function chosenModels() {
  const first = $("model").value, second = $("compare").value;
  return second && second !== first ? [first, second] : [first];
}

function suggest() {
  const viewer = toolbar?.viewer;
  const code = viewer ? viewer.info.modality : "";
  const questions = T("suggestions")[MODALITY_ALIASES[code] ?? code] ?? T("suggestions")[""];
  const old = [...$("suggestions").children].map((node) => node.textContent);
  const next = viewer && !readOnly ? questions : [];
  if (old.join() === next.join()) return;
  $("suggestions").replaceChildren(...next.map((text) => {
    const node = element("button", { type: "button", textContent: text });
    node.addEventListener("click", () => ask(text));
    return node;
  }));
}

function newTurn(question) {
  // a conversation holds each view of an image once: a view that an earlier turn showed is not sent again
  const shown = new Set(turns.flatMap((turn) => turn.images));
  const turn = { question, images: [], labels: [], modelLabels: [], thumbnails: [], viewers: [], note: "", answers: [] };
  for (const viewer of viewers) {
    if (!viewer.pixels) continue;
    const url = viewer.url(), { region } = viewer;
    if (!shown.has(url)) {
      turn.images.push(url); turn.labels.push(viewer.label()); turn.modelLabels.push(viewer.modelLabel());
      turn.thumbnails.push(viewer.thumbnail()); turn.viewers.push(viewer);
    }
    if (region) {
      const [x, y, width, height] = region;
      turn.images.push(viewer.url(region)); turn.labels.push(""); turn.modelLabels.push(""); turn.thumbnails.push(""); turn.viewers.push(null);
      turn.note = T("regionNote");
      turn.regionText = `${T("regionPrefix")} ${x}, ${y}, ${width} × ${height}`;
    }
  }
  return turn;
}

function imageParts(turn) {
  const parts = [];
  turn.images.forEach((url, i) => {
    if (turn.modelLabels[i]) parts.push({ type: "text", text: turn.modelLabels[i] });
    parts.push({ type: "image_url", image_url: { url } });
  });
  return parts;
}

function conversation(last, model) { // what a model is told: its own answers, another model's where it gave none
  const messages = [];
  let carried = []; // images of turns without an answer
  turns.slice(0, last + 1).forEach((turn, i) => {
    const answer = turn.answers.find((other) => other.model === model && other.text) ?? turn.answers.find((other) => other.text);
    const parts = [...carried, ...imageParts(turn)];
    carried = [];
    if (i < last && !answer) { carried = parts; return; }
    messages.push({ role: "user", content: [...parts, { type: "text", text: turn.question + turn.note }] });
    if (i < last) messages.push({ role: "assistant", content: answer.text });
  });
  return messages;
}

async function ask(question) {
  question = question.trim();
  if (controller || readOnly) return;
  if (!question) { status(T("send_first"), true); $("question").focus(); return; }
  turns.push(newTurn(question));
  $("question").value = "";
  render();
  await answer(turns.length - 1);
}

async function answer(index) {
  const turn = turns[index];
  turns.length = index + 1;
  turn.answers = chosenModels().map((model) => ({ model, text: "", meta: null, error: "" }));
  controller = new AbortController();
  busy(true);
  render();
  announce(T("waiting"));
  await Promise.all(turn.answers.map((one, i) => generate(index, i, controller.signal)));
  controller = null;
  busy(false);
  render();
  announce(turn.answers.map((one) => one.error || `${T("done")}: ${one.text}`).join(" "));
  keepConversation();
}

async function generate(index, number, signal) {
  const one = turns[index].answers[number];
  const node = $("messages").querySelector(`[data-answer="${index}/${number}"] .text`);
  try {
    const body = { model: one.model, messages: conversation(index, one.model), stream: true, stream_options: { include_usage: true } };
    const response = await postJson("/v1/chat/completions", body, { signal });
    for await (const part of lines(response, "\n\n")) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      if (choice?.delta?.content) {
        one.text += choice.delta.content;
        node.textContent = one.text;
        keepAtEnd();
      }
      const extra = choice?.qilin ?? {};
      if (extra.notices) one.notices = extra.notices;
      if (choice?.finish_reason) one.meta = { ...one.meta, reason: choice.finish_reason, confidence: typeof extra.confidence === "number" ? { value: extra.confidence, calibrated: true } : choice.confidence };
      if (event.usage) one.meta = { ...one.meta, usage: event.usage };
    }
  } catch (error) {
    if (error.name === "AbortError") one.meta = { ...one.meta, reason: "aborted" };
    else one.error = error.message;
  }
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("messages").setAttribute("aria-busy", on);
  if (document.activeElement === document.body) $("question").focus();
}

function keepAtEnd() { $("messages").scrollTop = $("messages").scrollHeight; }

function render() {
  const focus = document.activeElement?.dataset?.key; // the button that had the focus has it again
  $("messages").replaceChildren(...(turns.length ? turns.flatMap((turn, index) => [questionNode(turn, index), answersNode(turn, index)])
    : [element("p", { className: "empty", textContent: T("empty") })]));
  if (focus) $("messages").querySelector(`[data-key="${focus}"]`)?.focus({ preventScroll: true });
  keepAtEnd();
}

function questionNode(turn, index) {
  const node = element("article", { className: "message user" }, element("h3", { className: "who", textContent: T("user") }));
  const images = turn.thumbnails.map((src, i) => [src, turn.labels[i]]).filter(([src]) => src);
  if (images.length) node.append(element("div", { className: "thumbnails" }, ...images.map(([src, label], i) =>
    element("figure", {}, element("img", { src, alt: `${T("context-image")} ${i + 1} ${label}` }), ...(label ? [element("figcaption", { textContent: label })] : [])))));
  node.append(element("p", { className: "text", textContent: turn.question }));
  if (turn.regionText) node.append(element("p", { className: "meta", textContent: turn.regionText }));
  if (!readOnly) node.append(element("div", { className: "meta tools" }, small("edit", `${index}/edit`, () => edit(index))));
  return node;
}

function edit(index) {
  if (controller) return;
  const { question } = turns[index];
  turns.length = index;
  render();
  $("question").value = question;
  $("question").focus();
}

function answersNode(turn, index) {
  const nodes = turn.answers.map((one, number) => answerNode(turn, index, one, number));
  return element("div", { className: nodes.length > 1 ? "answers two" : "answers" }, ...nodes);
}

function answerNode(turn, index, one, number) {
  const title = models.length > 1 ? `${T("assistant")} · ${one.model}` : T("assistant");
  const node = element("article", { className: "message" }, element("h3", { className: "who", textContent: title }));
  node.dataset.answer = `${index}/${number}`;
  node.append(element("p", { className: "text", textContent: one.text }));
  for (const caution of cautions(one)) node.append(element("p", { className: "caution", textContent: caution }));
  if (one.error) node.append(element("p", { className: "bad", textContent: `${T("error")}: ${one.error}` }));
  if (one.map) node.append(mapFigure(one.map));
  if (!one.meta && !one.error) return node;
  if (describeAnswer(one)) node.append(element("p", { className: "meta", textContent: describeAnswer(one) }));
  const key = (name) => `${index}/${number}/${name}`;
  const tools = element("div", { className: "meta tools" });
  if (one.text) tools.append(small("copy", key("copy"), (event) => copy(one.text, event.target)));
  if (!readOnly) {
    tools.append(small("retry", key("retry"), () => { if (!controller) answer(index); }));
    if (one.text && imagesUpTo(index).length) tools.append(...mapTools(index, number, one, key));
  }
  if (tools.children.length) node.append(tools);
  return node;
}

function cautions(one) { // what a reader must know about an answer, in words
  const texts = (one.notices ?? []).map((notice) => notice[`text_${language}`]);
  if (one.meta?.reason === "length") texts.push(T("length"));
  if (!one.meta?.confidence?.calibrated && confidenceOf(one) < LOW_CONFIDENCE) texts.push(T("low")); // else the server says it
  return texts;
}

function confidenceOf(one) {
  const value = one.meta?.confidence;
  return typeof value === "object" && value ? value.value : value ?? undefined;
}

function describeAnswer(one) {
  const parts = [], confidence = confidenceOf(one);
  if (one.meta?.reason === "aborted") parts.push(T("aborted"));
  if (typeof confidence === "number") parts.push(`${T("confidence")} ${confidence.toFixed(2)} (${T(one.meta.confidence.calibrated ? "calibrated" : "not-calibrated")})`);
  if (one.meta?.usage) {
    const cached = one.meta.usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${one.meta.usage.total_tokens} ${T("tokens")}${cached ? ` (${cached} ${T("cached")})` : ""}`);
  }
  return parts.join(" · ");
}

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); } catch { // addresses without TLS have no clipboard interface
    const area = element("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = T("copied");
  button.focus();
  announce(T("copied"));
}

function small(name, key, action) {
  const node = element("button", { type: "button", textContent: T(name) });
  node.dataset.key = key;
  node.addEventListener("click", action);
  return node;
}

function reset() {
  if ((turns.length || viewers.length) && !confirm(T("confirmNew"))) return;
  controller?.abort();
  turns = [];
  readOnly = false;
  startConversation();
  removeViewers(viewers);
  status("");
  showReadOnly();
  render();
}

function showReadOnly() {
  $("form").hidden = readOnly;
  $("saved").hidden = !readOnly;
  suggest();
}

function setLanguage(next) {
  language = next;
  localStorage.setItem("language", next);
  applyLanguage();
  showWarnings();
  $("suggestions").replaceChildren();
  suggest();
  render();
  toolbar.refresh();
  for (const viewer of viewers) viewer.draw();
}

let warnings = [];
function showWarnings() { // the server's sentences, in the page's language where they are known
  const known = [[/synthetic images/, "server-synthetic"], [/from stage 1/, "server-stage1"],
    [/confidence: the model was not evaluated/, "server-calibration"], [/confidence: the model was evaluated with other weights/, "server-weights"]];
  $("warnings").hidden = !warnings.length;
  $("warnings").replaceChildren(...warnings.map((text) => {
    const name = known.find(([pattern]) => pattern.test(text))?.[1];
    const model = models.find((other) => text.startsWith(`${other}: `)); // which of several models it is about
    return element("span", { textContent: `${name ? (model ? `${model}: ` : "") + T(name) : text} `, lang: name ? "" : "en" });
  }));
  for (const node of $("warnings").children) if (!node.lang) node.removeAttribute("lang");
}

async function loadModels() {
  const rows = (await (await request("/v1/models")).json()).data;
  models = rows.map((row) => row.id);
  mapless = new Set(rows.filter((row) => row.occlusion_map === false).map((row) => row.id));
  $("model").replaceChildren(...models.map((name) => element("option", { value: name, textContent: name })));
  $("compare").replaceChildren(element("option", { value: "", textContent: T("none") }), ...models.map((name) => element("option", { value: name, textContent: name })));
  $("compare").options[0].dataset.text = "none";
  $("models").hidden = models.length < 2;
  $("name").textContent = models.length === 1 ? models[0] : "Qilin";
  document.title = `Qilin: ${models.join(", ")}`;
}

document.addEventListener("DOMContentLoaded", async () => {
  listenToFiles();
  listenToDialogs();
  listenToRecords();
  setLanguage(localStorage.getItem("language") ?? "zh");
  $("language").addEventListener("click", () => setLanguage(language === "zh" ? "en" : "zh"));
  $("theme").value = localStorage.getItem("theme") ?? "auto";
  $("theme").addEventListener("change", () => chooseTheme($("theme").value));
  $("help").addEventListener("click", showKeys);
  $("new").addEventListener("click", reset);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); ask($("question").value); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask($("question").value); }
  });
  $("stop").addEventListener("click", () => { controller?.abort(); $("question").focus(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && controller && !document.querySelector("dialog[open]")) controller.abort();
  });
  try {
    await loadModels();
    const info = await (await request("/api/info")).json();
    warnings = info.warnings;
    showWarnings();
    setDisclaimer(info.disclaimer);
  } catch (error) { api.report(error); }
});
