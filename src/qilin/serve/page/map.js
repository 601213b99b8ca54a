"use strict";
// Where an answer comes from: an occlusion map over the image, as part of the answer.

const MIN_DROP = 0.05; // log probability below which a map says nothing
const MAP_LEVELS = [0, 0.25, 0.5, 0.75, 1];

function imagesUpTo(index) { // the images of a conversation that are still loaded: {number among all, viewer, src}
  const all = turns.slice(0, index + 1).flatMap((turn) => turn.viewers.map((viewer, i) => ({ viewer, src: turn.thumbnails[i], label: turn.labels[i] })));
  return all.map((row, number) => ({ ...row, number })).filter((row) => row.viewer && viewers.includes(row.viewer));
}

function mapTools(index, number, one, key) {
  if (mapless.has(one.model)) return [element("span", { textContent: T("map-upstream") })];
  const images = imagesUpTo(index);
  const nodes = [];
  let select = null;
  if (images.length > 1) {
    select = element("select", {}, ...images.map((row, i) => element("option", { value: i, textContent: `${T("context-image")} ${i + 1} ${row.label}` })));
    select.setAttribute("aria-label", T("map-image"));
  }
  nodes.push(small("map", key("map"), () => computeMap(index, number, one, images[select ? select.value : 0])));
  if (select) nodes.push(select);
  return nodes;
}

async function computeMap(index, number, one, image) {
  if (controller) return;
  controller = new AbortController();
  const map = one.map = { src: image.src, label: image.label, rows: 0, columns: 0, drops: [], running: true };
  busy(true);
  render();
  try {
    const body = { model: one.model, messages: conversation(index, one.model), answer: one.text, image: image.number };
    const response = await postJson("/api/occlusion", body, { signal: controller.signal });
    for await (const line of lines(response, "\n")) {
      const row = JSON.parse(line);
      if (row.error) throw new Error(row.error);
      if (row.rows) Object.assign(map, { ...row, drops: new Array(row.rows * row.columns).fill(null) });
      else map.drops[row.cell] = row.drop;
      $("messages").querySelector(`[data-answer="${index}/${number}"] .map`)?.replaceWith(mapFigure(map));
    }
    map.running = false;
  } catch (error) {
    one.map = null;
    if (error.name !== "AbortError") api.report(error);
  }
  controller = null;
  busy(false);
  render();
  if (one.map) announce(mapText(map));
  keepConversation();
}

function mapTop(map) { return Math.max(0, ...map.drops.filter((drop) => Number.isFinite(drop))); }
function mapText(map) {
  return mapTop(map) > MIN_DROP ? [T("map-help"), map[`text_${language}`]].filter(Boolean).join(" ") : T("map-none");
}

function mapFigure(map) {
  const figure = element("figure", { className: "map" });
  figure.append(element("figcaption", { className: "who", textContent: `${T("map-title")} ${map.label}` }));
  if (map.running) {
    const count = map.drops.filter((drop) => drop !== null).length;
    figure.append(element("p", { className: "meta", textContent: `${T("map-running")} ${count}/${map.drops.length || "…"}` }),
      element("progress", { max: map.drops.length || 1, value: count, ariaLabel: T("map-running") }));
    return figure;
  }
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${T("map-title")} ${map.label}: ${mapSummary(map)}`);
  drawMap(canvas, map);
  figure.append(canvas);
  if (mapTop(map) > MIN_DROP) figure.append(mapScale(map));
  figure.append(element("p", { className: "meta", textContent: mapText(map) }));
  return figure;
}

function mapSummary(map) { // for who cannot see it: where the largest fall is
  const top = mapTop(map);
  if (top <= MIN_DROP) return T("map-none");
  const cell = map.drops.indexOf(top);
  return `${T("map-scale")} ${top.toFixed(2)}, x ${(cell % map.columns) + 1}/${map.columns}, y ${Math.floor(cell / map.columns) + 1}/${map.rows}`;
}

function mapColor(share) { return `rgba(255, 120, 0, ${(0.65 * share).toFixed(3)})`; }

async function drawMap(canvas, map) {
  const image = new Image();
  image.src = map.src;
  try { await image.decode(); } catch { return; }
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d"), top = mapTop(map);
  context.drawImage(image, 0, 0);
  if (top <= MIN_DROP) return;
  map.drops.forEach((drop, cell) => {
    const share = Math.max(0, drop ?? 0) / top;
    if (share < 0.05) return;
    const x = cell % map.columns, y = Math.floor(cell / map.columns);
    context.fillStyle = mapColor(share);
    context.fillRect((x * canvas.width) / map.columns, (y * canvas.height) / map.rows, canvas.width / map.columns, canvas.height / map.rows);
  });
}

function mapScale(map) { // the colors with their numbers
  const top = mapTop(map), canvas = element("canvas", { width: 200, height: 12 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#777";
  context.fillRect(0, 0, 200, 12);
  for (let x = 0; x < 200; x++) { context.fillStyle = mapColor(x / 199); context.fillRect(x, 0, 1, 12); }
  canvas.setAttribute("aria-hidden", "true");
  return element("div", { className: "scale" }, element("span", { textContent: T("map-scale") }),
    element("div", {}, canvas, element("div", { className: "ticks" }, ...MAP_LEVELS.map((level) => element("span", { textContent: (level * top).toFixed(2) })))));
}
