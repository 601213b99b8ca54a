"use strict";
// What stays of a conversation: an exported file, a print, and a history in this browser, which is off until somebody
// turns it on.

const EXPORT_STYLE = "body{font-family:system-ui,'Noto Sans CJK SC',sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;line-height:1.6;color:#1b1f24;background:#fff}" +
  "img{max-width:100%;max-height:26rem;background:#000}.who{color:#555;font-size:.9rem;margin:1rem 0 0}.notice{border:1px solid #a60;padding:.5rem}" +
  "p{white-space:pre-wrap;overflow-wrap:anywhere}.meta,figcaption{color:#555;font-size:.85rem}.caution{color:#7a4d00}figure{display:inline-block;margin:.3rem .5rem .3rem 0;vertical-align:top}";
const DATABASE = "qilin", STORE = "conversations";
let conversationId = "";

function startConversation() { conversationId = crypto.getRandomValues(new Uint32Array(4)).join("-"); }

// export

async function mapPicture(map) {
  const canvas = element("canvas");
  await drawMap(canvas, map);
  return canvas.toDataURL("image/jpeg", 0.85);
}

async function exportDocument() { // one file without scripts; texts are escaped by the DOM
  const page = document.implementation.createHTMLDocument(T("export-title"));
  page.documentElement.lang = document.documentElement.lang;
  const make = (name, text, className = "") => { const node = page.createElement(name); node.textContent = text; if (className) node.className = className; return node; };
  const figure = (src, caption) => {
    const node = page.createElement("figure"), image = page.createElement("img");
    image.src = src;
    image.alt = caption || T("context-image");
    node.append(image);
    if (caption) node.append(make("figcaption", caption));
    return node;
  };
  const meta = (name, value, content) => { const node = page.createElement("meta"); node.setAttribute(name, value); if (content) node.setAttribute("content", content); page.head.prepend(node); };
  meta("http-equiv", "Content-Security-Policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'");
  meta("charset", "utf-8");
  const names = [...new Set(turns.flatMap((turn) => turn.answers.map((one) => one.model)))];
  page.body.append(make("h1", T("export-title")), make("p", T("notice"), "notice"),
    make("p", `${T("model")}: ${names.join(", ")}\n${T("date")}: ${new Date().toLocaleString(document.documentElement.lang)}`, "meta"));
  if (warnings.length) page.body.append(make("p", $("warnings").textContent.trim(), "caution"));
  for (const turn of turns) {
    page.body.append(make("h2", T("user"), "who"));
    turn.thumbnails.forEach((src, i) => { if (src) page.body.append(figure(src, turn.labels[i])); });
    page.body.append(make("p", turn.question));
    if (turn.regionText) page.body.append(make("p", turn.regionText, "meta"));
    for (const one of turn.answers) {
      page.body.append(make("h2", `${T("assistant")}: ${one.model}`, "who"), make("p", one.text || one.error));
      for (const text of cautions(one)) page.body.append(make("p", text, "caution"));
      if (describeAnswer(one)) page.body.append(make("p", describeAnswer(one), "meta"));
      if (one.map && !one.map.running) page.body.append(figure(await mapPicture(one.map), `${T("map-title")} ${one.map.label}. ${mapSummary(one.map)}`), make("p", mapText(one.map), "meta"));
    }
  }
  page.body.append(make("p", T("notice"), "notice"));
  // as text: this page's policy would block a style element that scripts make
  return `<!doctype html>\n${page.documentElement.outerHTML.replace("</head>", `<style>${EXPORT_STYLE}</style></head>`)}`;
}

async function exportPage() {
  const blob = new Blob([await exportDocument()], { type: "text/html" });
  const link = element("a", { href: URL.createObjectURL(blob), download: `qilin-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.html` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// history

function historyOn() { return localStorage.getItem("history") === "on"; }

function withStore(mode, action) { // the result of a request on the store
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result, transaction = database.transaction(STORE, mode);
      const result = action(transaction.objectStore(STORE));
      transaction.oncomplete = () => { database.close(); resolve(result.result); };
      transaction.onerror = transaction.onabort = () => { database.close(); reject(transaction.error); };
    };
  });
}

async function keepConversation() {
  if (!historyOn() || readOnly || !turns.length) return;
  const rows = turns.map(({ question, labels, thumbnails, regionText, answers }) => ({ question, labels, thumbnails, regionText, note: "", images: [], viewers: [],
    answers: answers.map((one) => ({ ...one, map: one.map?.running ? null : one.map })) }));
  try { await withStore("readwrite", (store) => store.put({ id: conversationId, date: Date.now(), turns: rows })); }
  catch (error) { status(`${T("history-failed")}: ${error.message}`, true); }
}

async function deleteHistory() {
  const deletion = indexedDB.deleteDatabase(DATABASE);
  await new Promise((resolve, reject) => { deletion.onsuccess = resolve; deletion.onerror = () => reject(deletion.error); });
  announce(T("history-deleted"));
  await listHistory(T("history-deleted"));
}

async function listHistory(note = "") {
  const list = $("history-list");
  $("history-on").checked = historyOn();
  try {
    const rows = (await withStore("readonly", (store) => store.getAll())).sort((a, b) => b.date - a.date);
    list.replaceChildren(...rows.map((row) => {
      const label = `${new Date(row.date).toLocaleString(document.documentElement.lang)} · ${row.turns[0].question.slice(0, 60)}`;
      const open = small("open", `open/${row.id}`, () => openConversation(row)), remove = small("delete", `delete/${row.id}`, async () => {
        await withStore("readwrite", (store) => store.delete(row.id));
        await listHistory();
        $("history-on").focus();
      });
      for (const button of [open, remove]) button.setAttribute("aria-label", `${button.textContent}: ${label}`);
      return element("li", {}, element("span", { textContent: label }), open, remove);
    }));
    if (!rows.length) list.replaceChildren(element("li", { textContent: note || T("history-none") }));
    $("history-delete").disabled = !rows.length;
  } catch (error) { list.replaceChildren(element("li", { textContent: `${T("history-failed")}: ${error.message}` })); }
}

function openConversation(row) {
  controller?.abort();
  turns = row.turns;
  readOnly = true;
  $("history-dialog").close();
  showReadOnly();
  render();
  $("messages").focus();
}

function listenToRecords() {
  startConversation();
  $("export").addEventListener("click", exportPage);
  $("print").addEventListener("click", () => window.print());
  $("history").addEventListener("click", async () => { await listHistory(); $("history-dialog").showModal(); });
  $("history-on").addEventListener("change", () => {
    localStorage.setItem("history", $("history-on").checked ? "on" : "off");
    keepConversation();
  });
  $("history-delete").addEventListener("click", deleteHistory);
}
