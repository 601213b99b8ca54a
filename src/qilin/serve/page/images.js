"use strict";
// Loading images: files, folders, series; and the viewers that show them.

const MAX_VIEWERS = 8;
const UPLOADS_AT_ONCE = 3;
let viewers = [];
let toolbar = null;

const api = {
  request, announce, root: "/api/images", help: showKeys,
  report: (error) => status(`${T("error")}: ${error.message}`, true),
  viewers: () => viewers,
  number: (viewer) => viewers.indexOf(viewer) + 1,
  activate: (viewer) => { toolbar.activate(viewer); suggest(); },
  changed: () => toolbar.refresh(),
  chooseTool: (tool) => toolbar.choose(tool),
  remove: (viewer) => removeViewers([viewer]),
  togglePlanes,
  linked: (viewer, share) => {
    if (!toolbar.linked) return;
    for (const other of viewers) if (other.image !== viewer.image && other.planeName() === viewer.planeName() && other.count > 1)
      other.setIndex(Math.round(share * (other.count - 1)), true);
  },
};

function status(text, bad = false) { $("image-status").textContent = text; $("image-status").className = bad ? "bad" : ""; }

function arrange() { // the number of columns that makes the images largest
  const host = $("viewers"), { clientWidth: width, clientHeight: height } = host;
  if (!viewers.length || window.innerWidth <= 800) { host.style.removeProperty("grid-template-columns"); return; }
  let best = 1, largest = 0;
  for (let columns = 1; columns <= viewers.length; columns++) {
    const side = Math.min(width / columns, height / Math.ceil(viewers.length / columns));
    if (side > largest) [best, largest] = [columns, side];
  }
  host.style.gridTemplateColumns = `repeat(${best}, minmax(0, 1fr))`;
}

function showViewers(next, active = next[next.length - 1]) {
  const old = viewers;
  viewers = next;
  for (const viewer of old) if (!next.includes(viewer)) viewer.close();
  next.forEach((viewer, i) => { if ($("viewers").children[i] !== viewer.node) $("viewers").insertBefore(viewer.node, $("viewers").children[i] ?? null); });
  $("images").classList.toggle("loaded", next.length > 0);
  arrange();
  toolbar.activate(active ?? null);
  for (const viewer of next) viewer.draw(); // their numbers changed
  suggest();
}

function removeViewers(gone) {
  const images = new Set(gone.map((viewer) => viewer.image));
  const next = viewers.filter((viewer) => !gone.includes(viewer));
  const hadFocus = gone.some((viewer) => viewer.node.contains(document.activeElement));
  showViewers(next);
  for (const image of images) if (!next.some((viewer) => viewer.image === image)) forget(image.id);
  if (hadFocus) (next[0]?.canvas ?? $("files")).focus();
}

function forget(id) { request(`${api.root}/${id}`, { method: "DELETE" }).catch(() => {}); }

async function togglePlanes(viewer) { // one plane of a volume, or all three
  let { image } = viewer;
  const at = viewers.indexOf(viewer);
  if (image.viewers.length > 1) {
    showViewers(viewers.filter((other) => other.image !== image || other === viewer), viewer);
    return;
  }
  if (viewers.length + 2 > MAX_VIEWERS) { status(T("too-many"), true); return; }
  let first = viewer;
  if (!image.isVolume) { // the slices of a series
    status(T("loading"));
    try {
      const info = await (await postJson("/api/volumes", { image: image.id })).json();
      info.window = image.info.window; // that of the files
      const volume = new LoadedImage(info);
      Object.assign(volume, { center: image.center, width: image.width, inverted: image.inverted });
      first = new Viewer(volume, info.plane || "axial", api);
      showViewers(viewers.map((other) => (other === viewer ? first : other)), first);
      forget(image.id);
      image = volume;
      status("");
    } catch (error) { api.report(error); return; }
  }
  const others = image.planes.filter((plane) => plane !== first.plane).map((plane) => new Viewer(image, plane, api));
  showViewers(viewers.toSpliced ? viewers.toSpliced(at + 1, 0, ...others) : [...viewers.slice(0, at + 1), ...others, ...viewers.slice(at + 1)], first);
  for (const other of others) other.setTool(toolbar.tool);
  first.canvas.focus();
}

async function addFiles(files) {
  const failures = [], loaded = [];
  let next = 0;
  const upload = async () => {
    while (next < files.length) {
      const number = next++, file = files[number];
      status(`${T("loading")} ${number + 1}/${files.length} ${file.name}`);
      try {
        const response = await request(api.root, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
        loaded[number] = await response.json();
      } catch (error) { failures.push(`${file.name}: ${error.message}`); }
    }
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, upload));
  const images = await stackSeries(loaded.filter(Boolean), failures);
  const added = [];
  for (const info of images) {
    if (viewers.length + added.length < MAX_VIEWERS) added.push(new Viewer(new LoadedImage(info), Object.keys(info.planes)[0], api));
    else { forget(info.id); if (!failures.includes(T("too-many"))) failures.push(T("too-many")); }
  }
  if (added.length) showViewers([...viewers, ...added]);
  const text = [added.length ? `${T("loaded")} ${added.length}` : "",
    failures.length ? `${T("failed")} ${failures.length}: ${failures.slice(0, 3).join("; ")}${failures.length > 3 ? `; ${T("remaining")}` : ""}` : ""];
  status(text.filter(Boolean).join("; "), failures.length > 0);
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
      images.push(...(await (await postJson("/api/stacks", { images: group.map((info) => info.id) })).json()).images);
    } catch (error) { failures.push(error.message); }
  }
  return images;
}

async function droppedFiles(transfer) { // folders too, which transfer.files leaves out
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
      return;
    }
    const reader = entry.createReader();
    for (;;) { // a reader gives a hundred entries at a time
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const child of part) await walk(child);
    }
  };
  for (const entry of entries) await walk(entry);
  return files;
}

function isImageFile(file) { return !file.name.startsWith(".") && !["DICOMDIR", "Thumbs.db", "desktop.ini"].includes(file.name); }

function listenToFiles() {
  toolbar = new Toolbar($("toolbar"), ["window", "pan", "zoom-in", "zoom-out", "window-values", "invert", "measure", "angle", "region", "undo", "planes", "link", "reset"], api);
  new ResizeObserver(arrange).observe($("images"));
  for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => {
    const files = [...event.target.files].filter(isImageFile);
    event.target.value = "";
    addFiles(files);
  });
  const body = document.body;
  document.addEventListener("dragover", (event) => { event.preventDefault(); body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) body.classList.remove("over"); });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    body.classList.remove("over");
    try { addFiles((await droppedFiles(event.dataTransfer)).filter(isImageFile)); } catch (error) { api.report(error); }
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    addFiles([...event.clipboardData.files]);
  });
}
