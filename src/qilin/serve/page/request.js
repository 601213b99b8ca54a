"use strict";
// Requests to this server with the tab's API key, and the dialogs that pages share.

const $ = (id) => document.getElementById(id);

async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try { response = await fetch(path, { ...options, headers }); }
  catch (error) { throw error.name === "AbortError" ? error : new Error(T("offline")); }
  if (response.status === 401) { await askKey(); return request(path, options); }
  if (response.ok) return response;
  let detail = "";
  try {
    const body = await response.json();
    detail = body.error.message ?? body.error;
  } catch { /* not from this server */ }
  const name = `status-${response.status}`, known = T(name);
  const text = known === name ? detail || String(response.status) : language === "zh" && detail ? `${known} (${detail})` : detail || known;
  throw Object.assign(new Error(text), { status: response.status });
}

function postJson(path, value, options = {}) {
  return request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), ...options });
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

async function* lines(response, separator) { // the parts of a streamed text
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split(separator);
    text = parts.pop();
    yield* parts.filter(Boolean);
  }
}

function announce(text) { $("announce").textContent = text; } // for screen readers

function chooseTheme(theme) {
  localStorage.setItem("theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function showKeys() {
  $("keys-list").replaceChildren(...T("keys-list").flatMap(([key, text]) => [element("dt", {}, element("kbd", { textContent: key })), element("dd", { textContent: text })]));
  $("keys-dialog").showModal();
}

function listenToDialogs() {
  for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
}
chooseTheme(localStorage.getItem("theme") ?? "auto");
