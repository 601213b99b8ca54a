"use strict";
// The review page: shows samples, takes decisions. Images are drawn by the viewer of the chat page.

const REASONS = ["译文有误 wrong translation", "与图像不符 does not match the image", "图像上看不出 not visible in the image",
  "问题或答案有误 wrong question or answer", "含个人信息 personal data", "语句不通 poorly worded"];
const DECIDED = { accept: "accepted 已通过", fix: "fixed 已修改", reject: "rejected 已驳回" };
// history: indexes of the samples decided in this session, for undo
const state = { decisions: [], index: 0, sample: null, editing: false, busy: false, history: [] };

// Text is set as textContent, never as HTML: a dataset must not be able to run code.
function node(tag, className = "", text = "") { return element(tag, { className, textContent: text }); }

async function load(path) { return (await call(path)).json(); }
async function call(path, body) {
  try { return body ? await postJson(path, body) : await request(path); } catch (error) {
    if (error.message === T("offline")) throw new Error("Not saved: the server does not answer. Is `qilin data review` still running? 未保存：服务器没有响应");
    throw error;
  }
}

let noteTimer;
function showNote(text, isError) {
  const note = $("note");
  note.textContent = text;
  note.className = isError ? "note error" : "note";
  note.hidden = false;
  clearTimeout(noteTimer);
  noteTimer = setTimeout(() => { note.hidden = true; }, isError ? 8000 : 1600);
}

function showProgress() {
  const total = state.decisions.length;
  let decided = 0;
  for (const name of Object.keys(DECIDED)) {
    const count = state.decisions.filter((decision) => decision === name).length;
    decided += count;
    document.querySelector(`.progress .${name}`).style.width = `${100 * count / total}%`;
  }
  $("position").textContent = `${state.index + 1} / ${total} · ${decided} decided 已审 · ${total - decided} undecided 待审`;
}

let viewers = [];
let toolbar = null;
const api = {
  request, announce, root: "/images",
  report: (error) => showNote(error.message, true),
  viewers: () => viewers,
  number: (viewer) => viewers.indexOf(viewer) + 1,
  activate: (viewer) => toolbar.activate(viewer),
  changed: () => toolbar.refresh(),
  chooseTool: (tool) => tool !== "region" && toolbar.choose(tool),
  pageKeys: new Set(["a", "f", "r", "u", "n", "z", "h", "?", "ArrowLeft", "ArrowRight"]),
};

async function showImages(sample) {
  for (const viewer of viewers) viewer.close();
  viewers = [];
  toolbar.activate(null);
  $("no-images").textContent = sample.images.length ? "" : "This sample has no image. 本条样本没有图像";
  for (const id of sample.images) {
    try {
      const info = { ...(await load(`images/${id}/info`)), id };
      if (sample !== state.sample) return;
      const viewer = new Viewer(new LoadedImage(info), "axial", api);
      viewers.push(viewer);
      $("viewers").append(viewer.node);
    } catch (error) { $("no-images").textContent = `This image cannot be displayed. 图像无法显示: ${error.message}`; }
  }
  toolbar.activate(viewers[0] ?? null);
}

function showSample() {
  const sample = state.sample, panel = $("panel");
  panel.replaceChildren(metadataLine(sample), ...textCards(sample), checksCard(sample));
  panel.scrollTop = 0;
  for (const button of document.querySelectorAll("footer button")) {
    const isEditButton = ["save", "cancel"].includes(button.dataset.action);
    button.hidden = state.editing ? !isEditButton : isEditButton;
  }
  showProgress();
}

function metadataLine(sample) {
  const line = node("div", "metadata");
  if (sample.previous) {
    const { decision, reason } = sample.previous;
    line.append(node("span", `decided ${decision}`, DECIDED[decision] + (reason ? `: ${reason}` : "")));
  }
  for (const [name, value] of Object.entries(sample.metadata)) line.append(node("span", "", name === "kind" ? value : `${name} ${value}`));
  return line;
}

function textCards(sample) {
  const cards = [];
  let options = null;
  for (const field of sample.texts) {
    if (field.field.startsWith("choice ")) {
      if (!options) { options = node("div", "card"); options.append(node("div", "options")); cards.push(options); }
      const block = fillTextBlock(field, node("div", "field"), "small");
      if (field.text === sample.answer) block.classList.add("correct-option");
      options.firstChild.append(block);
    } else {
      cards.push(fillTextBlock(field, node("div", field.label === "instruction" ? "card instruction" : "card"), ""));
    }
  }
  return cards;
}

function fillTextBlock(field, block, size) {
  block.append(node("p", "label", field.label));
  if (field.original) { const original = node("p", "original", field.original); original.lang = "en"; block.append(original); }
  const fixed = state.sample.previous?.texts?.[field.field];
  if (state.editing) {
    const input = node("textarea");
    input.value = fixed ?? field.text;
    input.dataset.field = field.field;
    input.setAttribute("aria-label", field.label);
    input.rows = Math.max(1, Math.min(12, Math.ceil(input.value.length / 28)));
    block.append(input);
  } else {
    block.append(node("p", `text ${size}`, fixed ?? field.text));
    if (fixed) block.append(node("p", "replaced-text", field.text));
  }
  return block;
}

function checksCard(sample) {
  const card = node("div", "card"), list = node("ul", "checks");
  for (const check of [...sample.checks].sort((a, b) => a.passed - b.passed)) {
    const item = node("li", check.passed ? "" : "failed");
    if (check.passed) item.textContent = `✓ ${check.name}`;
    else item.append(node("b", "", `✗ ${check.name}`), ` ${check.detail}`);
    list.append(item);
  }
  card.append(node("p", "label", "automatic checks 自动检查"), list);
  const translation = Object.entries(sample.translation).map(([name, value]) => `${name}: ${value}`).join(" · ");
  if (translation) card.append(node("p", "translation", translation));
  return card;
}

function toggleZoom() {
  const viewer = toolbar.viewer;
  if (viewer) viewer.setZoom(viewer.zoom > 1 ? 1 : 2.2);
  if (viewer?.zoom === 1) { viewer.resetView(); viewer.draw(); }
}

async function goTo(index) {
  state.index = Math.max(0, Math.min(index, state.decisions.length - 1));
  state.editing = false;
  state.sample = await load(`samples/${state.index}`);
  showSample();
  showImages(state.sample);
}

function nextUndecided() {
  for (let step = 1; step <= state.decisions.length; step++) {
    const index = (state.index + step) % state.decisions.length;
    if (!state.decisions[index]) return index;
  }
  return -1;
}

async function goToUndecided() {
  const index = nextUndecided();
  if (index >= 0) return goTo(index);
  await goTo(state.index);
  const card = node("div", "card end");
  card.append(node("b", "", "All samples decided 全部审核完毕"), node("span", "",
    "Press Ctrl-C in the terminal to end the session. U undoes the last decision, ← shows the samples again. 在终端按 Ctrl-C 结束；U 撤销，← 回看"));
  $("panel").prepend(card);
}

async function decide(decision, details) {
  await call("decide", { index: state.index, hash: state.sample.hash, decision, ...details });
  state.decisions[state.index] = decision === "undo" ? null : decision;
  if (decision !== "undo") {
    state.history.push(state.index);
    showNote(DECIDED[decision]);
    await goToUndecided();
  }
}

async function undo() {
  const index = state.history.pop() ?? (state.decisions[state.index] ? state.index : undefined);
  if (index === undefined) return showNote("Nothing to undo 没有可撤销的决定");
  await goTo(index);
  await decide("undo");
  await goTo(index);
  showNote("undone 已撤销");
}

function startEditing() {
  state.editing = true;
  showSample();
  const inputs = [...document.querySelectorAll("textarea")];
  const isInstruction = (input) => state.sample.texts.some((field) => field.field === input.dataset.field && field.label === "instruction");
  (inputs.find((input) => !isInstruction(input)) || inputs[0])?.focus();
}

function saveFix() {
  const texts = {};
  for (const input of document.querySelectorAll("textarea")) texts[input.dataset.field] = input.value;
  return decide("fix", { texts });
}

function askForReason() {
  const dialog = $("reject-dialog");
  $("other-reason").value = "";
  dialog.showModal();
  dialog.querySelector("button").focus();
}
REASONS.forEach((reason, index) => {
  const button = node("button", "", "");
  button.append(node("kbd", "", String(index + 1)), node("span", "", reason));
  button.addEventListener("click", () => reject(reason));
  document.querySelector(".reasons").append(button);
});
function reject(reason) {
  $("reject-dialog").close();
  run(() => decide("reject", { reason }));
}

const ACTIONS = {
  accept: () => decide("accept"), fix: startEditing, reject: askForReason, save: saveFix, undo, undecided: goToUndecided,
  cancel: () => { state.editing = false; showSample(); },
  previous: () => goTo(state.index - 1), next: () => goTo(state.index + 1),
  help: () => $("help-dialog").showModal(), zoom: toggleZoom,
};
const KEYS = { a: "accept", f: "fix", r: "reject", u: "undo", n: "undecided", z: "zoom", "?": "help", ArrowLeft: "previous", ArrowRight: "next" };

// One action at a time: a key pressed twice must not decide two samples.
async function run(action) {
  if (state.busy) return;
  state.busy = true;
  try { await action(); } catch (error) { showNote(error.message, true); } finally { state.busy = false; }
}

document.querySelector("footer").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) run(ACTIONS[button.dataset.action]);
});
document.addEventListener("keydown", (event) => {
  if ($("reject-dialog").open) {
    const input = $("other-reason"), reason = REASONS[Number(event.key) - 1];
    if (event.target === input) {
      if (event.key === "Enter" && !event.isComposing && input.value.trim()) reject(input.value.trim());
    } else if (reason) { event.preventDefault(); reject(reason); }
    return;
  }
  if ($("help-dialog").open || event.isComposing || event.repeat) return;  // isComposing: an input method is active
  if (state.editing) {
    if (event.key === "Escape") run(ACTIONS.cancel);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(saveFix); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !$("keys-on").checked) return;
  if ($("key-dialog").open || event.target.matches("input, select, textarea")) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) { event.preventDefault(); run(ACTIONS[action]); }
});

document.addEventListener("DOMContentLoaded", () => {
  if (location.hash.length > 1) { // the key of the printed address; it goes no further than this tab
    sessionStorage.setItem("key", decodeURIComponent(location.hash.slice(1)));
    history.replaceState(null, "", location.pathname);
  }
  toolbar = new Toolbar($("toolbar"), ["window", "pan", "zoom-in", "zoom-out", "window-values", "invert", "measure", "angle", "undo", "reset"], api);
  listenToDialogs();
  language = localStorage.getItem("language") ?? "zh";
  applyLanguage();
  $("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    localStorage.setItem("language", language);
    applyLanguage();
    toolbar.refresh();
    for (const viewer of viewers) viewer.draw();
  });
  $("keys-on").checked = localStorage.getItem("keys") !== "off";
  $("keys-on").addEventListener("change", () => localStorage.setItem("keys", $("keys-on").checked ? "on" : "off"));
  $("theme").value = localStorage.getItem("theme") ?? "auto";
  $("theme").addEventListener("change", () => chooseTheme($("theme").value));
  run(async () => {
    const session = await load("samples");
    state.decisions = session.decisions;
    $("dataset").textContent = session.dataset;
    $("reviewer").textContent = session.reviewer;
    document.title = `${session.dataset} · Qilin 审核 review`;
    state.index = state.decisions.length - 1;  // the search for the first undecided sample starts after this one
    await goToUndecided();
  });
});
