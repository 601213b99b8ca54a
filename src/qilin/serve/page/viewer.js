"use strict";
// One image on a 2-D canvas. The server decodes; the browser maps values to gray levels through a lookup table, so a
// change of the window costs one pass over the pixels and no request. A LoadedImage is what its viewers share: three of
// them show the planes of a volume.

const VIEW_SIDE = 1024; // pixels of the first, reduced version of a large image
const CACHE_BYTES = 96 << 20; // of the frames of one image
const POINTS = { measure: 2, angle: 3, region: 2 };
const MARK_COLOR = "#ffd400";
// patient axes 0 left to right, 1 back to front, 2 feet to head: which one a plane's index, columns and rows follow;
// columns and rows run against their axis
const PLANE_AXES = {
  axial: { index: 2, x: 0, y: 1, edges: ["R", "A", "L"] },
  coronal: { index: 1, x: 0, y: 2, edges: ["R", "H", "L"] },
  sagittal: { index: 0, x: 1, y: 2, edges: ["A", "H", "P"] },
};

class LoadedImage {
  constructor(info) {
    Object.assign(this, { info, id: info.id, inverted: false, viewers: [], frames: new Map(), bytes: 0 });
    [this.center, this.width] = info.window;
    this.planes = Object.keys(info.planes).filter((plane) => plane in PLANE_AXES);
    this.isVolume = this.planes.length > 1;
    this.position = [0.5, 0.5, 0.5]; // in the volume, along the patient axes
  }

  redraw() { for (const viewer of this.viewers) viewer.draw(); }
  setWindow(center, width) { this.center = center; this.width = Math.max(width, 1e-3); this.redraw(); }
  invert() { this.inverted = !this.inverted; this.redraw(); }

  reset() {
    [this.center, this.width] = this.info.window;
    this.inverted = false;
    for (const viewer of this.viewers) { viewer.resetView(); viewer.draw(); }
  }

  frame(api, plane, index, side) {
    const name = `${plane}/${index}/${side}`;
    let entry = this.frames.get(name);
    if (!entry) {
      entry = { size: 0 };
      entry.promise = fetchPixels(api, this.id, plane, index, side).then((pixels) => {
        entry.size = pixels.values.byteLength;
        this.bytes += entry.size;
        for (const [other, old] of this.frames) {
          if (this.bytes <= CACHE_BYTES || other === name) break;
          this.bytes -= old.size;
          this.frames.delete(other);
        }
        return pixels;
      });
      entry.promise.catch(() => this.frames.delete(name)); // the next look tries again
    }
    this.frames.delete(name);
    this.frames.set(name, entry); // the most recently used one is last
    return entry.promise;
  }
}

async function fetchPixels(api, id, plane, index, side) {
  const response = await api.request(`${api.root}/${id}/pixels?plane=${plane}&index=${index}&max=${side}`);
  const head = (name) => Number(response.headers.get(name));
  const buffer = await response.arrayBuffer();
  const kind = response.headers.get("X-Kind");
  return {
    kind, side, width: head("X-Width"), height: head("X-Height"), fullWidth: head("X-Full-Width"), fullHeight: head("X-Full-Height"),
    slope: head("X-Slope"), intercept: head("X-Intercept"), inverted: head("X-Inverted") === 1, spacing: head("X-Spacing"),
    padding: response.headers.has("X-Padding") ? head("X-Padding") : null,
    values: kind === "rgb" ? new Uint8Array(buffer) : new Int16Array(buffer),
  };
}

class Viewer {
  constructor(image, plane, api) {
    Object.assign(this, { image, info: image.info, plane, api, tool: "window", marks: [], pending: null, hover: null });
    image.viewers.push(this);
    this.fontSize = 0.8 * parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.index = Math.floor(this.count / 2);
    this.resetView();
    this.build();
  }

  get count() { return this.info.planes[this.plane]; }
  resetView() { this.zoom = 1; this.panX = 0; this.panY = 0; }

  build() {
    this.node = element("div", { className: "viewer" });
    this.stage = element("div", { className: "stage" });
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.readout = element("p", { className: "readout" });
    this.readout.setAttribute("aria-hidden", "true"); // the canvas has it as its label
    this.stage.append(this.canvas, this.readout);
    this.slider = element("input", { type: "range", min: 0, step: 1, className: "slices" });
    this.slider.dataset.label = "slice";
    this.slider.addEventListener("input", () => this.setIndex(Number(this.slider.value)));
    this.bar = element("div", { className: "bar" });
    if (this.image.isVolume) {
      this.planeChoice = element("select");
      this.planeChoice.dataset.label = "plane";
      for (const plane of this.image.planes) {
        const option = element("option", { value: plane, selected: plane === this.plane });
        option.dataset.text = plane;
        this.planeChoice.append(option);
      }
      this.planeChoice.addEventListener("change", () => this.setPlane(this.planeChoice.value));
      this.bar.append(this.planeChoice);
    }
    this.bar.append(this.slider);
    if (this.api.remove) {
      const close = element("button", { type: "button", className: "remove", textContent: "×" });
      close.dataset.label = close.dataset.title = "remove";
      close.addEventListener("click", () => this.api.remove(this));
      this.stage.append(close);
    }
    this.node.append(this.stage, this.bar);
    this.listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.stage);
    applyLanguage(this.node);
    this.show();
  }

  close() {
    this.observer.disconnect();
    this.node.remove();
    this.image.viewers = this.image.viewers.filter((other) => other !== this);
  }

  setTool(tool) {
    this.tool = tool;
    this.pending = null;
    this.hover = null;
    this.canvas.dataset.tool = tool;
    this.draw();
  }

  setPlane(plane) {
    this.plane = plane;
    this.index = Math.round(this.image.position[PLANE_AXES[plane].index] * (this.count - 1));
    this.pending = null;
    this.resetView();
    this.show();
  }

  setIndex(index, linked = false) {
    const next = Math.max(0, Math.min(this.count - 1, index));
    if (next === this.index) return;
    this.index = next;
    this.pending = null;
    if (this.image.isVolume) this.image.position[PLANE_AXES[this.plane].index] = next / Math.max(1, this.count - 1);
    if (!linked) this.api.linked?.(this, next / Math.max(1, this.count - 1));
    this.show();
    for (const other of this.image.viewers) if (other !== this) other.draw();
  }

  async show() { // one request at a time: while it runs, only the newest wish counts
    this.slider.max = this.count - 1;
    this.slider.value = this.index;
    this.slider.hidden = this.count < 2;
    this.slider.setAttribute("aria-valuetext", `${this.index + 1} / ${this.count}`);
    if (this.loading) return;
    this.loading = true;
    try {
      for (;;) {
        const { plane, index } = this;
        const pixels = await this.image.frame(this.api, plane, index, VIEW_SIDE);
        if (plane !== this.plane || index !== this.index) continue;
        this.pixels = pixels;
        this.draw();
        break;
      }
      for (const step of [1, -1]) { // neighbors are probably next
        const index = this.index + step;
        if (index >= 0 && index < this.count) this.image.frame(this.api, this.plane, index, VIEW_SIDE).catch(() => {});
      }
    } catch (error) { this.api.report(error); } finally { this.loading = false; }
  }

  async sharpen() { // the full image, once somebody looks closer than the reduced one shows
    const { plane, index, pixels } = this;
    if (!pixels || pixels.width === pixels.fullWidth || pixels.side > VIEW_SIDE || this.sharpening) return;
    this.sharpening = true;
    try {
      const full = await this.image.frame(this.api, plane, index, 4096);
      if (plane === this.plane && index === this.index) { this.pixels = full; this.draw(); }
    } catch (error) { this.api.report(error); } finally { this.sharpening = false; }
  }

  bitmap() { // the frame as a canvas; kept until the frame or the window changes
    const p = this.pixels, { center, width, inverted } = this.image;
    const old = this.bitmapOf;
    if (old && old.pixels === p && old.center === center && old.width === width && old.inverted === inverted) return old.canvas;
    const canvas = new OffscreenCanvas(p.width, p.height);
    const image = new ImageData(p.width, p.height);
    const out = new Uint32Array(image.data.buffer);
    if (p.kind === "rgb") {
      for (let i = 0, j = 0; i < out.length; i++, j += 3) out[i] = 0xff000000 | (p.values[j + 2] << 16) | (p.values[j + 1] << 8) | p.values[j];
    } else {
      const table = new Uint32Array(65536); // stored value + 32768 -> gray level
      const flip = p.inverted !== inverted;
      for (let stored = -32768; stored < 32768; stored++) {
        const level = ((stored * p.slope + p.intercept - center) / Math.max(width, 1e-6) + 0.5) * 255;
        let gray = Math.max(0, Math.min(255, Math.round(level)));
        if (flip) gray = 255 - gray;
        if (stored === p.padding) gray = 0;
        table[stored + 32768] = 0xff000000 | (gray << 16) | (gray << 8) | gray;
      }
      for (let i = 0; i < out.length; i++) out[i] = table[p.values[i] + 32768];
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    this.bitmapOf = { pixels: p, center, width, inverted, canvas };
    return canvas;
  }

  place() { // where the whole image lies on the canvas
    const p = this.pixels;
    const scale = Math.min(this.canvas.width / p.fullWidth, this.canvas.height / p.fullHeight) * this.zoom;
    const width = p.fullWidth * scale, height = p.fullHeight * scale;
    return { scale, x: (this.canvas.width - width) / 2 + this.panX, y: (this.canvas.height - height) / 2 + this.panY, width, height };
  }

  draw() {
    if (!this.pixels) return;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.stage.clientWidth * ratio)), height = Math.max(1, Math.round(this.stage.clientHeight * ratio));
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const at = this.place();
    context.imageSmoothingEnabled = at.scale * (this.pixels.fullWidth / this.pixels.width) < 4;
    context.drawImage(this.bitmap(), at.x, at.y, at.width, at.height);
    this.drawCross(context, at, ratio);
    for (const mark of this.currentMarks()) this.drawMark(context, at, ratio, mark);
    if (this.pending) this.drawMark(context, at, ratio, { ...this.pending, points: [...this.pending.points, ...(this.hover ? [this.hover] : [])] });
    if (this.cursor && this.tool in POINTS) this.drawCursor(context, at, ratio);
    this.drawEdges(context, ratio);
    this.writeReadout();
    if (at.scale * (this.pixels.fullWidth / this.pixels.width) > 1.3) this.sharpen();
  }

  writeReadout() {
    const parts = [];
    if (this.info.modality) parts.push(this.info.modality);
    if (this.count > 1) parts.push(this.label());
    if (this.pixels.kind !== "rgb") parts.push(`${T("center")}/${T("width")} ${round(this.image.center)}/${round(this.image.width)}`);
    if (this.zoom !== 1) parts.push(`${T("zoom")} ${this.zoom.toFixed(1)}`);
    const measures = this.currentMarks().map((mark) => this.measure(mark)).join("; ");
    const hint = this.tool in POINTS ? T(`${this.tool}-hint`) : "";
    const lines = [parts.join("  "), measures, hint].filter(Boolean);
    const isRoomy = this.stage.clientHeight > 18 * this.fontSize; // else the lines would cover a small image
    this.readout.textContent = (isRoomy ? lines : lines.slice(0, 1)).join("\n");
    const label = [`${T("context-image")} ${this.api.number?.(this) ?? ""}`, ...lines, T("canvas-help")].join(", ");
    if (this.canvas.getAttribute("aria-label") !== label) this.canvas.setAttribute("aria-label", label);
  }

  drawCross(context, at, ratio) { // where the other planes of the volume are
    if (this.image.viewers.length < 2) return;
    const axes = PLANE_AXES[this.plane];
    const x = at.x + (1 - this.image.position[axes.x]) * at.width, y = at.y + (1 - this.image.position[axes.y]) * at.height;
    context.strokeStyle = "rgba(80, 200, 255, .7)";
    context.lineWidth = ratio;
    context.beginPath();
    context.moveTo(x, at.y); context.lineTo(x, at.y + at.height);
    context.moveTo(at.x, y); context.lineTo(at.x + at.width, y);
    context.stroke();
  }

  drawEdges(context, ratio) { // R at the left edge: the patient's right side lies there
    const edges = this.image.isVolume ? PLANE_AXES[this.plane].edges : this.info.edges;
    if (!edges) return;
    const { width, height } = this.canvas;
    this.write(context, ratio, edges[0], 10 * ratio, height / 2);
    this.write(context, ratio, edges[2], width - 10 * ratio, height / 2);
    this.write(context, ratio, edges[1], width / 2, 12 * ratio);
  }

  write(context, ratio, text, x, y) {
    context.font = `${this.fontSize * ratio}px system-ui, sans-serif`;
    context.textAlign = "center"; context.textBaseline = "middle";
    context.strokeStyle = "#000"; context.lineWidth = 3 * ratio; context.fillStyle = "#fff";
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  drawMark(context, at, ratio, mark) {
    const points = mark.points.map(([x, y]) => [at.x + x * at.scale, at.y + y * at.scale]);
    context.strokeStyle = context.fillStyle = MARK_COLOR;
    context.lineWidth = 2 * ratio;
    context.beginPath();
    if (mark.kind === "region" && points.length === 2) context.rect(points[0][0], points[0][1], points[1][0] - points[0][0], points[1][1] - points[0][1]);
    else points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
    for (const [x, y] of points) context.fillRect(x - 3 * ratio, y - 3 * ratio, 6 * ratio, 6 * ratio);
    if (points.length === POINTS[mark.kind]) {
      const [x, y] = points[points.length - 1];
      this.write(context, ratio, this.measure(mark), x, y + 14 * ratio);
    }
  }

  drawCursor(context, at, ratio) {
    const x = at.x + this.cursor[0] * at.scale, y = at.y + this.cursor[1] * at.scale, arm = 12 * ratio;
    for (const [color, width] of [["#000", 4], [MARK_COLOR, 2]]) {
      context.strokeStyle = color; context.lineWidth = width * ratio;
      context.beginPath();
      context.moveTo(x - arm, y); context.lineTo(x + arm, y); context.moveTo(x, y - arm); context.lineTo(x, y + arm);
      context.stroke();
    }
  }

  currentMarks() { return this.marks.filter((mark) => mark.plane === this.plane && mark.index === this.index); }

  get region() { // [x, y, width, height] in whole pixels of the full image, or null
    const mark = this.currentMarks().find((other) => other.kind === "region");
    return mark ? boxOf(mark.points, this.pixels) : null;
  }

  measure(mark) {
    const spacing = this.info.spacing ? this.pixels.spacing : 0;
    const lengthText = (length) => (spacing ? `${(length * spacing).toFixed(1)} mm` : `${length.toFixed(0)} ${T("pixels")}`);
    if (mark.kind === "angle") return `${angle(...mark.points).toFixed(1)}°`;
    const [a, b] = mark.points;
    const note = spacing && this.info.spacing === "detector" ? T("detector") : "";
    if (mark.kind === "region") return `${lengthText(Math.abs(b[0] - a[0]))} × ${lengthText(Math.abs(b[1] - a[1]))}${note}`;
    return lengthText(distance(a, b)) + note;
  }

  addPoint(point) {
    this.pending ??= { kind: this.tool, points: [] };
    this.pending.points.push(point);
    if (this.pending.points.length < POINTS[this.tool]) { this.draw(); return; }
    const mark = { ...this.pending, plane: this.plane, index: this.index };
    this.pending = null;
    this.hover = null;
    if (mark.kind === "region") {
      const box = boxOf(mark.points, this.pixels);
      this.marks = this.marks.filter((other) => !(other.kind === "region" && other.plane === this.plane && other.index === this.index));
      if (box[2] < 4 || box[3] < 4) { this.draw(); return; }
    } else if (distance(mark.points[0], mark.points[1]) < 1e-6) { this.draw(); return; }
    this.marks.push(mark);
    this.draw();
    this.api.announce?.(this.measure(mark));
  }

  removeMarks() {
    const current = this.currentMarks();
    this.marks = this.marks.filter((mark) => !current.includes(mark));
    this.pending = null;
    this.draw();
  }

  toCanvas(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * (this.canvas.width / box.width), (event.clientY - box.top) * (this.canvas.height / box.height)];
  }

  toImage(event) {
    const at = this.place(), [x, y] = this.toCanvas(event);
    return this.clamp([(x - at.x) / at.scale, (y - at.y) / at.scale]);
  }

  clamp([x, y]) { return [Math.max(0, Math.min(this.pixels.fullWidth, x)), Math.max(0, Math.min(this.pixels.fullHeight, y))]; }

  listen() {
    const canvas = this.canvas;
    this.pointers = new Map();
    canvas.addEventListener("focus", () => this.api.activate?.(this));
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event, name === "pointerup"));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.count > 1 && !event.ctrlKey) this.setIndex(this.index + Math.sign(event.deltaY));
      else this.setZoom(this.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15), ...this.toCanvas(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  setZoom(zoom, x = this.canvas.width / 2, y = this.canvas.height / 2) { // the point x, y of the canvas stays
    if (!this.pixels) return;
    const next = Math.max(0.5, Math.min(20, zoom)), factor = next / this.zoom;
    this.panX = (x - this.canvas.width / 2) * (1 - factor) + this.panX * factor;
    this.panY = (y - this.canvas.height / 2) * (1 - factor) + this.panY * factor;
    this.zoom = next;
    this.draw();
  }

  press(event) {
    if (!this.pixels) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    const pan = event.button !== 0 || event.shiftKey || this.tool === "pan" || (this.info.color && this.tool === "window");
    this.drag = { event, last: event, pan, moved: false, center: this.image.center, width: this.image.width };
    this.cursor = null;
    if (!pan && this.tool in POINTS && this.pointers.size === 1) this.drag.first = !this.pending;
  }

  move(event) {
    if (!this.pixels) return;
    const drag = this.drag;
    if (this.tool in POINTS && this.pending && !drag?.pan) { this.hover = this.toImage(event); this.draw(); }
    if (!drag || !this.pointers.has(event.pointerId)) return;
    const before = [...this.pointers.values()];
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size > 1) { this.pinch(before, [...this.pointers.values()]); return; }
    const dx = event.clientX - drag.event.clientX, dy = event.clientY - drag.event.clientY;
    if (Math.hypot(dx, dy) > 4 && !drag.moved) {
      drag.moved = true;
      if (drag.first) this.addPoint(this.toImage(drag.event));
    }
    if (!drag.moved) return;
    const ratio = window.devicePixelRatio || 1;
    if (drag.pan) {
      this.panX += (event.clientX - drag.last.clientX) * ratio;
      this.panY += (event.clientY - drag.last.clientY) * ratio;
      this.draw();
    } else if (this.tool === "window") {
      const unit = Math.max(this.info.window[1], 1e-3) / 400;
      this.image.setWindow(drag.center + dy * unit, drag.width + dx * unit);
      this.api.changed?.();
    }
    drag.last = event;
  }

  pinch(before, after) { // two fingers zoom and pan
    if (before.length < 2) return;
    const span = ([a, b]) => Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY));
    const middle = ([a, b]) => this.toCanvas({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
    const from = middle(before), to = middle(after);
    this.panX += to[0] - from[0];
    this.panY += to[1] - from[1];
    this.pending = null;
    this.drag.moved = this.drag.pinched = true;
    this.setZoom(this.zoom * (span(after) / span(before)), ...to);
  }

  release(event, complete) {
    this.pointers.delete(event.pointerId);
    const drag = this.drag;
    if (this.pointers.size || !drag) return;
    this.drag = null;
    if (!complete || drag.pinched) return;
    if (!drag.pan && this.tool in POINTS) this.addPoint(this.toImage(event)); // the end of a drag, or a click
    else if (!drag.moved && this.tool === "pan") this.centerOn(this.toImage(event));
    else if (!drag.moved && event.button === 0 && this.image.viewers.length > 1) this.moveCross(this.toImage(event));
    this.api.changed?.();
  }

  centerOn([x, y]) {
    const at = this.place();
    this.panX += this.canvas.width / 2 - (at.x + x * at.scale);
    this.panY += this.canvas.height / 2 - (at.y + y * at.scale);
    this.draw();
  }

  moveCross([x, y]) { // the other planes go through this point
    const axes = PLANE_AXES[this.plane];
    const target = { [axes.x]: 1 - x / this.pixels.fullWidth, [axes.y]: 1 - y / this.pixels.fullHeight };
    for (const [axis, value] of Object.entries(target)) this.image.position[axis] = value;
    for (const viewer of this.image.viewers) {
      const axis = PLANE_AXES[viewer.plane].index;
      if (axis in target) viewer.setIndex(Math.min(viewer.count - 1, Math.floor(target[axis] * viewer.count)));
    }
    this.image.redraw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.pixels) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const moving = event.shiftKey || (this.tool in POINTS && name.startsWith("Arrow"));
    if (this.api.pageKeys?.has(name) && !moving) return; // the page has another use for it
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    const { image } = this, unit = Math.max(this.info.window[1], 1e-3) / 40;
    const actions = {
      "+": () => this.setZoom(this.zoom * 1.2), "=": () => this.setZoom(this.zoom * 1.2), "-": () => this.setZoom(this.zoom / 1.2),
      "0": () => image.reset(), i: () => this.info.color || image.invert(), h: () => this.api.help?.(),
      "[": () => image.setWindow(image.center - unit, image.width), "]": () => image.setWindow(image.center + unit, image.width),
      "{": () => image.setWindow(image.center, image.width - unit), "}": () => image.setWindow(image.center, image.width + unit),
      w: () => this.api.chooseTool?.("window"), p: () => this.api.chooseTool?.("pan"), m: () => this.api.chooseTool?.("measure"),
      a: () => this.api.chooseTool?.("angle"), r: () => this.api.chooseTool?.("region"),
      Delete: () => this.removeMarks(), Backspace: () => this.removeMarks(),
      PageUp: () => this.setIndex(this.index - 10), PageDown: () => this.setIndex(this.index + 10),
      Home: () => this.setIndex(0), End: () => this.setIndex(this.count - 1),
    };
    const marking = this.tool in POINTS;
    if (step && marking && !event.shiftKey) this.moveCursor(step);
    else if (marking && (event.key === "Enter" || event.key === " ")) this.addPoint(this.cursor ??= [this.pixels.fullWidth / 2, this.pixels.fullHeight / 2]);
    else if (marking && event.key === "Escape" && this.pending) { this.pending = null; this.draw(); }
    else if (step && this.count > 1 && !event.shiftKey) this.setIndex(this.index + step[0] + step[1]);
    else if (step) { this.panX -= step[0] * 40; this.panY -= step[1] * 40; this.draw(); }
    else {
      const action = actions[name];
      if (!action) return;
      action();
      this.api.changed?.();
    }
    event.preventDefault();
    event.stopPropagation();
  }

  moveCursor([dx, dy]) {
    const unit = Math.max(1, Math.max(this.pixels.fullWidth, this.pixels.fullHeight) / 50);
    const [x, y] = this.cursor ?? [this.pixels.fullWidth / 2, this.pixels.fullHeight / 2];
    this.cursor = this.clamp([x + dx * unit, y + dy * unit]);
    if (this.pending) this.hover = this.cursor;
    this.draw();
  }

  url(crop) { // what the model is shown: this frame, this window
    const options = new URLSearchParams({ plane: this.plane, index: this.index });
    if (!this.info.color) options.set("window", `${this.image.center},${this.image.width}`);
    if (this.image.inverted) options.set("invert", "1");
    if (crop) options.set("crop", crop.join(","));
    return `qilin-image:${this.image.id}?${options}`;
  }

  planeName() { return T(this.image.isVolume ? this.plane : this.info.plane || "frame"); }
  label() { return this.count < 2 ? "" : `${this.planeName()} ${this.index + 1}/${this.count}`; }
  modelLabel() { // in the language of the training data, whatever that of the page
    const plane = this.image.isVolume ? this.plane : this.info.plane || "context-image";
    return this.count < 2 ? "" : `${TEXTS.zh[plane]} ${this.index + 1}/${this.count}`;
  }

  thumbnail() {
    const canvas = document.createElement("canvas");
    const scale = Math.min(1, 480 / Math.max(this.pixels.width, this.pixels.height));
    canvas.width = Math.max(1, Math.round(this.pixels.width * scale));
    canvas.height = Math.max(1, Math.round(this.pixels.height * scale));
    const context = canvas.getContext("2d");
    context.drawImage(this.bitmap(), 0, 0, canvas.width, canvas.height);
    if (this.region) {
      const k = canvas.width / this.pixels.fullWidth;
      context.strokeStyle = MARK_COLOR; context.lineWidth = 2;
      context.strokeRect(...this.region.map((value) => value * k));
    }
    return canvas.toDataURL("image/jpeg", 0.85);
  }
}

function boxOf([a, b], pixels) { // two corners -> [x, y, width, height], whole pixels inside the image
  const left = Math.floor(Math.min(a[0], b[0])), top = Math.floor(Math.min(a[1], b[1]));
  const right = Math.min(pixels.fullWidth, Math.ceil(Math.max(a[0], b[0]))), bottom = Math.min(pixels.fullHeight, Math.ceil(Math.max(a[1], b[1])));
  return [left, top, right - left, bottom - top];
}
function round(value) { return Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)); }
function distance(a, b) { return Math.hypot(a[0] - b[0], a[1] - b[1]); }
function angle(a, b, c) {
  const first = Math.atan2(a[1] - b[1], a[0] - b[0]), second = Math.atan2(c[1] - b[1], c[0] - b[0]);
  const turn = Math.abs(first - second) * (180 / Math.PI);
  return turn > 180 ? 360 - turn : turn;
}
