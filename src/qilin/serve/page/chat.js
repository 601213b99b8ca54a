"use strict";
// The conversation: images and questions go to /v1/chat/completions, answers arrive as text nodes. Nothing is kept when
// the tab closes; only the key and the language live in this tab's session.

const $ = (id) => document.getElementById(id);
const LOW_CONFIDENCE = 0.5;
const MAX_VIEWERS = 8;
const EXPORT_STYLE = "body{font-family:system-ui,'Noto Sans CJK SC',sans-serif;max-width:50rem;margin:2rem auto;line-height:1.6}" +
  "img{max-width:100%;background:#000}.who{color:#666}.notice{border:1px solid #a60;padding:.5rem}p{white-space:pre-wrap}";
let model = "";
let viewers = [];
let turns = []; // {question, images: [url], thumbnails, labels, answer, meta, viewers}
let controller = null;
let linking = false;

async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try { response = await fetch(path, { ...options, headers }); }
  catch (error) { throw error.name === "AbortError" ? error : new Error(T("offline")); }
  if (response.status === 401) { await askKey(); return request(path, options); }
  if (!response.ok) {
    let message = `${response.status}`;
    try { message = (await response.json()).error.message; } catch { /* not from this server */ }
    throw new Error(message);
  }
  return response;
}

let keyPromise = null;
function askKey() {
  keyPromise ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key").value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", $("key").value.trim());
      keyPromise = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return keyPromise;
}

const api = {
  request,
  report: (error) => status(`${T("error")}: ${error.message}`, true),
  remove: (viewer) => {
    viewers = viewers.filter((other) => other !== viewer);
    viewer.node.remove();
    request(`/api/images/${viewer.id}`, { method: "DELETE" }).catch(() => {});
    suggest();
  },
  linked: (viewer, share) => {
    if (linking) return;
    linking = true;
    for (const other of viewers) if (other !== viewer && other.plane === viewer.plane && other.counts[other.plane] > 1)
      other.setIndex(Math.round(share * (other.counts[other.plane] - 1)), true);
    linking = false;
  },
};

function status(text, bad = false) { $("image-status").textContent = text; $("image-status").className = bad ? "bad" : ""; }

async function addFiles(files) {
  const failures = [], loaded = [];
  for (const file of files) {
    status(`${T("loading")} ${loaded.length + failures.length + 1}/${files.length} ${file.name}`);
    try {
      loaded.push(await (await request("/api/images", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file })).json());
    } catch (error) { failures.push(`${file.name}: ${error.message}`); }
  }
  const images = await stackSeries(loaded, failures);
  for (const info of images) {
    if (viewers.length < MAX_VIEWERS) viewers.push(new Viewer(info, $("viewers"), api));
    else failures.push(T("too-many"));
  }
  const text = [loaded.length ? `${T("loaded")} ${loaded.length}` : "", failures.length ? `${T("failed")} ${failures.length}: ${failures.slice(0, 3).join("; ")}` : ""];
  status(text.filter(Boolean).join("; "), failures.length > 0);
  suggest();
}

async function stackSeries(loaded, failures) { // the slices of a series, one file each, become one image
  const groups = new Map();
  loaded.forEach((info, i) => {
    const name = info.series ?? `#${i}`;
    groups.set(name, [...(groups.get(name) ?? []), info]);
  });
  const images = [];
  for (const group of groups.values()) {
    if (group.length === 1) { images.push(group[0]); continue; }
    try {
      const body = JSON.stringify({ images: group.map((info) => info.id) });
      const response = await request("/api/stacks", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      images.push(...(await response.json()).images);
    } catch (error) { failures.push(error.message); }
  }
  return images;
}

function suggest() {
  const modality = viewers.length ? viewers[viewers.length - 1].info.modality : "";
  const questions = T("suggestions")[modality] ?? T("suggestions")[""] ?? [];
  $("suggestions").replaceChildren(...(viewers.length ? questions : []).map((text) => {
    const node = element("button", { type: "button", textContent: text });
    node.addEventListener("click", () => ask(text));
    return node;
  }));
}

function newTurn(question) {
  // a conversation holds each view of an image once: a view that an earlier turn showed is not sent again
  const shown = new Set(turns.flatMap((turn) => turn.images));
  const turn = { question, images: [], labels: [], thumbnails: [], viewers: [], answer: "", meta: null };
  for (const viewer of viewers) {
    if (!viewer.pixels) continue;
    const url = viewer.url();
    if (!shown.has(url)) {
      turn.images.push(url); turn.labels.push(viewer.label()); turn.thumbnails.push(viewer.thumbnail()); turn.viewers.push(viewer);
    }
    if (viewer.region) {
      turn.images.push(viewer.url(viewer.region)); turn.labels.push(""); turn.thumbnails.push(""); turn.viewers.push(null);
      turn.question = question + T("regionNote");
    }
  }
  return turn;
}

function content(turn) {
  const parts = [];
  turn.images.forEach((url, i) => {
    if (turn.labels[i]) parts.push({ type: "text", text: turn.labels[i] });
    parts.push({ type: "image_url", image_url: { url } });
  });
  return [...parts, { type: "text", text: turn.question }];
}

function conversation(last) {
  const messages = [];
  for (const turn of turns.slice(0, last + 1)) {
    messages.push({ role: "user", content: content(turn) });
    if (turn.answer && turn !== turns[last]) messages.push({ role: "assistant", content: turn.answer });
  }
  return messages;
}

async function ask(question) {
  question = question.trim();
  if (!question) { status(T("send_first"), true); $("question").focus(); return; }
  if (controller) return;
  turns.push(newTurn(question));
  $("question").value = "";
  render();
  await answer(turns.length - 1);
}

async function answer(index) {
  const turn = turns[index];
  turns.length = index + 1;
  Object.assign(turn, { answer: "", meta: null, error: "" });
  render();
  const node = $("messages").lastElementChild.querySelector(".text");
  controller = new AbortController();
  busy(true);
  try {
    const body = { model, messages: conversation(index), stream: true, stream_options: { include_usage: true } };
    const response = await request("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: controller.signal,
    });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice?.delta?.content) { turn.answer += choice.delta.content; node.textContent = turn.answer; $("messages").scrollTop = 1e9; }
      if (choice?.finish_reason) turn.meta = { reason: choice.finish_reason, confidence: choice.confidence };
      if (event.usage) Object.assign(turn.meta ??= {}, { usage: event.usage });
    }
  } catch (error) {
    if (error.name === "AbortError") turn.meta = { reason: "aborted" };
    else turn.error = error.message;
  }
  controller = null;
  busy(false);
  render();
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      yield JSON.parse(part.slice(6));
    }
  }
}

function busy(on) { $("send").hidden = on; $("stop").hidden = !on; $("messages").setAttribute("aria-busy", on); }

function render() {
  $("messages").replaceChildren(...turns.flatMap((turn, index) => [questionNode(turn, index), answerNode(turn, index)]));
  $("messages").scrollTop = 1e9;
}

function questionNode(turn, index) {
  const node = element("div", { className: "message user" }, element("span", { className: "who", textContent: T("user") }));
  const images = turn.thumbnails.filter(Boolean);
  if (images.length) node.append(element("div", { className: "thumbnails" }, ...images.map((src, i) => element("img", { src, alt: `${T("context-image")} ${i + 1} ${turn.labels[i]}` }))));
  node.append(element("span", { textContent: turn.question }));
  node.append(element("div", { className: "meta" }, small("edit", () => { turns.length = index; $("question").value = turn.question; $("question").focus(); render(); })));
  return node;
}

function answerNode(turn, index) {
  const node = element("div", { className: "message" }, element("span", { className: "who", textContent: T("assistant") }));
  node.append(element("span", { className: "text", textContent: turn.answer }));
  if (turn.error) node.append(element("div", { className: "bad", textContent: `${T("error")}: ${turn.error}` }));
  if (turn.meta?.reason === "length") node.append(element("div", { className: "caution", textContent: T("length") }));
  if (turn.meta?.confidence < LOW_CONFIDENCE) node.append(element("div", { className: "caution", textContent: T("low") }));
  if (!turn.meta && !turn.error) return node;
  const meta = element("div", { className: "meta" });
  if (turn.meta?.reason === "aborted") meta.append(T("aborted"));
  if (turn.meta?.confidence !== undefined) meta.append(`${T("confidence")} ${turn.meta.confidence.toFixed(2)}`);
  if (turn.meta?.usage) {
    const cached = turn.meta.usage.prompt_tokens_details.cached_tokens;
    meta.append(` ${turn.meta.usage.total_tokens} ${T("tokens")}${cached ? ` (${cached} ${T("cached")})` : ""}`);
  }
  const copy = small("copy", async () => { await navigator.clipboard.writeText(turn.answer); copy.textContent = T("copied"); });
  meta.append(copy, small("retry", () => { if (!controller) answer(index); }));
  const first = turns.slice(0, index + 1).flatMap((other) => other.viewers).findIndex((viewer) => viewer && viewers.includes(viewer));
  if (turn.answer && first >= 0) meta.append(small("map", (event) => showMap(index, first, event.target)));
  node.append(meta);
  return node;
}

function small(name, action) {
  const node = element("button", { type: "button", textContent: T(name) });
  node.addEventListener("click", action);
  return node;
}

async function showMap(index, image, button) {
  const viewer = turns.slice(0, index + 1).flatMap((turn) => turn.viewers)[image];
  button.disabled = true;
  try {
    const body = JSON.stringify({ messages: conversation(index), answer: turns[index].answer, image });
    const response = await request("/api/occlusion", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "", grid = null, done = 0;
    for (;;) {
      const chunk = await reader.read();
      if (chunk.done) break;
      text += chunk.value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        const row = JSON.parse(line);
        if (row.error) throw new Error(row.error);
        if (row.rows) grid = { ...row, drops: new Array(row.rows * row.columns).fill(NaN) };
        else { grid.drops[row.cell] = row.drop; done++; }
        viewer.setOverlay({ ...grid, label: `${T("map-running")} ${done}/${grid.drops.length}` });
      }
    }
    const top = Math.max(...grid.drops);
    const label = top > 0.05 ? `${T("map-help")} ${T("map-scale")}: 0 – ${top.toFixed(2)}` : T("map-none");
    viewer.setOverlay({ ...grid, drops: top > 0.05 ? grid.drops : grid.drops.map(() => 0), label });
  } catch (error) { api.report(error); viewer.setOverlay(null); }
  button.disabled = false;
}

function exportPage() { // one file without scripts; texts are escaped by the DOM
  const page = document.implementation.createHTMLDocument(T("export-title"));
  page.documentElement.lang = document.documentElement.lang;
  const make = (name, text, className = "") => { const node = page.createElement(name); node.textContent = text; node.className = className; return node; };
  const meta = page.createElement("meta");
  meta.setAttribute("charset", "utf-8");
  page.head.prepend(meta);
  page.body.append(make("h1", T("export-title")), make("p", T("notice"), "notice"), make("p", `${T("model")}: ${model}  ${T("date")}: ${new Date().toLocaleString()}`));
  for (const turn of turns) {
    page.body.append(make("p", T("user"), "who"));
    turn.thumbnails.filter(Boolean).forEach((src) => { const image = page.createElement("img"); image.src = src; image.alt = ""; page.body.append(image); });
    page.body.append(make("p", turn.question), make("p", T("assistant"), "who"), make("p", turn.answer));
  }
  page.body.append(make("p", T("notice"), "notice"));
  // as text: this page's policy would block a style element that scripts make
  const html = page.documentElement.outerHTML.replace("</head>", `<style>${EXPORT_STYLE}</style></head>`);
  const blob = new Blob(["<!doctype html>\n", html], { type: "text/html" });
  const link = element("a", { href: URL.createObjectURL(blob), download: `qilin-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.html` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function reset() {
  if ((turns.length || viewers.length) && !confirm(T("confirmNew"))) return;
  controller?.abort();
  turns = [];
  for (const viewer of [...viewers]) api.remove(viewer);
  status("");
  render();
}

function setLanguage(next) {
  language = next;
  sessionStorage.setItem("language", next);
  applyLanguage();
  suggest();
  render();
  for (const viewer of viewers) viewer.draw();
}

document.addEventListener("DOMContentLoaded", async () => {
  setLanguage(sessionStorage.getItem("language") ?? "zh");
  $("language").addEventListener("click", () => setLanguage(language === "zh" ? "en" : "zh"));
  $("new").addEventListener("click", reset);
  $("export").addEventListener("click", exportPage);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); ask($("question").value); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask($("question").value); }
  });
  $("stop").addEventListener("click", () => controller?.abort());
  for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { addFiles([...event.target.files]); event.target.value = ""; });
  const drop = $("drop");
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); addFiles([...event.dataTransfer.files]); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); addFiles([...event.clipboardData.files]); } });
  try {
    const info = await (await request("/api/info")).json();
    model = info.model;
    $("model").textContent = model;
    document.title = `Qilin: ${model}`;
    $("warnings").hidden = !info.warnings.length;
    $("warnings").textContent = info.warnings.join(" ");
  } catch (error) { api.report(error); }
});
