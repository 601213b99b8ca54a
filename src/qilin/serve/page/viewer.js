"use strict";
// One image on a 2-D canvas. The server decodes; the browser maps values to gray levels through a lookup table, so a
// change of the window costs one pass over the pixels and no request.

const VIEW_SIDE = 1024; // pixels of the first, reduced version of a large image

class Viewer {
  constructor(info, host, api) {
    Object.assign(this, { info, host, api, id: info.id, plane: "axial", tool: "window", overlay: null });
    this.counts = info.planes;
    this.index = Math.floor(this.counts.axial / 2);
    this.defaultWindow = info.window.slice();
    [this.center, this.width] = info.window;
    this.inverted = false;
    this.frames = new Map(); // "plane/index/side" -> pixels
    this.resetView();
    this.build();
  }

  resetView() { this.zoom = 1; this.panX = 0; this.panY = 0; this.marks = []; this.region = null; }

  build() {
    this.node = element("div", { className: "viewer" });
    this.stage = element("div", { className: "stage" });
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.canvas.dataset.label = "canvas-help";
    this.readout = element("p", { className: "readout" });
    this.stage.append(this.canvas, this.readout);
    this.tools = element("div", { className: "tools" });
    this.legend = element("p", { className: "legend", hidden: true });
    this.node.append(this.stage, this.tools, this.legend);
    this.host.append(this.node);
    this.buildTools();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    applyLanguage();
    this.show();
  }

  buildTools() {
    const button = (name, action, pressed) => {
      const node = element("button", { type: "button" });
      node.dataset.text = name;
      node.dataset.tool = name;
      if (pressed !== undefined) node.setAttribute("aria-pressed", pressed);
      node.addEventListener("click", action);
      this.tools.append(node);
      return node;
    };
    const planes = Object.keys(this.counts);
    if (planes.length > 1) for (const plane of planes) button(plane, () => this.setPlane(plane), plane === this.plane);
    this.slider = element("input", { type: "range", min: 0, step: 1 });
    this.slider.dataset.label = "slice";
    this.slider.addEventListener("input", () => this.setIndex(Number(this.slider.value)));
    this.tools.append(this.slider);
    if (!this.info.color) {
      this.presets = element("select");
      this.presets.dataset.label = "window";
      const choices = { auto: this.defaultWindow, ...this.info.presets };
      for (const name of Object.keys(choices)) {
        const option = element("option", { value: name, textContent: name === "auto" ? T("auto") : name });
        if (name === "auto") option.dataset.text = "auto";
        this.presets.append(option);
      }
      this.presets.addEventListener("change", () => {
        [this.center, this.width] = choices[this.presets.value];
        this.draw();
      });
      this.tools.append(this.presets);
      button("invert", () => this.invert(), false);
    }
    for (const tool of ["measure", "angle", "region"]) button(tool, () => this.setTool(tool), false);
    button("reset", () => this.reset());
    button("remove", () => this.api.remove(this));
  }

  setTool(tool) {
    this.tool = this.tool === tool ? "window" : tool;
    this.marks = [];
    if (this.tool === "region") this.region = null;
    for (const node of this.tools.querySelectorAll("[data-tool]"))
      if (["measure", "angle", "region"].includes(node.dataset.tool)) node.setAttribute("aria-pressed", node.dataset.tool === this.tool);
    this.draw();
  }

  setPlane(plane) {
    this.plane = plane;
    this.index = Math.floor(this.counts[plane] / 2);
    this.resetView();
    this.setOverlay(null);
    for (const node of this.tools.querySelectorAll("[data-tool]"))
      if (node.dataset.tool in this.counts) node.setAttribute("aria-pressed", node.dataset.tool === plane);
    this.show();
  }

  setIndex(index, linked = false) {
    const count = this.counts[this.plane];
    const next = Math.max(0, Math.min(count - 1, index));
    if (next === this.index) return;
    this.index = next;
    this.setOverlay(null);
    if (!linked) this.api.linked(this, next / Math.max(1, count - 1));
    this.show();
  }

  invert() {
    this.inverted = !this.inverted;
    const node = this.tools.querySelector('[data-tool="invert"]');
    if (node) node.setAttribute("aria-pressed", this.inverted);
    this.draw();
  }

  reset() {
    [this.center, this.width] = this.defaultWindow;
    if (this.presets) this.presets.value = "auto";
    if (this.inverted) this.invert();
    this.resetView();
    this.setOverlay(null);
    this.draw();
  }

  setOverlay(overlay) { // {rows, columns, drops, label} or null
    this.overlay = overlay;
    this.legend.hidden = !overlay;
    this.legend.textContent = overlay ? overlay.label : "";
    this.draw();
  }

  async show() {
    const { plane, index } = this;
    this.slider.max = this.counts[plane] - 1;
    this.slider.value = index;
    this.slider.hidden = this.counts[plane] < 2;
    this.slider.setAttribute("aria-valuetext", `${index + 1} / ${this.counts[plane]}`);
    try {
      this.pixels = await this.load(plane, index, VIEW_SIDE);
      if (plane === this.plane && index === this.index) this.draw();
    } catch (error) { this.api.report(error); }
  }

  async load(plane, index, side) {
    const name = `${plane}/${index}/${side}`;
    if (!this.frames.has(name)) {
      if (this.frames.size > 64) this.frames.delete(this.frames.keys().next().value);
      this.frames.set(name, this.fetchPixels(plane, index, side));
    }
    return this.frames.get(name);
  }

  async fetchPixels(plane, index, side) {
    const response = await this.api.request(`/api/images/${this.id}/pixels?plane=${plane}&index=${index}&max=${side}`);
    const head = (name) => Number(response.headers.get(name));
    const buffer = await response.arrayBuffer();
    const kind = response.headers.get("X-Kind");
    return {
      kind, width: head("X-Width"), height: head("X-Height"), fullWidth: head("X-Full-Width"), fullHeight: head("X-Full-Height"),
      slope: head("X-Slope"), intercept: head("X-Intercept"), inverted: head("X-Inverted") === 1, spacing: head("X-Spacing"),
      values: kind === "rgb" ? new Uint8Array(buffer) : new Int16Array(buffer), side,
    };
  }

  async sharpen() { // the full image, once somebody looks closer than the reduced one shows
    const { plane, index, pixels } = this;
    if (!pixels || pixels.width === pixels.fullWidth || this.zoom < 1.5) return;
    const full = await this.load(plane, index, 4096);
    if (plane === this.plane && index === this.index) { this.pixels = full; this.draw(); }
  }

  bitmap() {
    const p = this.pixels;
    const image = new ImageData(p.width, p.height);
    const out = image.data;
    if (p.kind === "rgb") {
      for (let i = 0, j = 0; i < out.length; i += 4, j += 3) {
        out[i] = p.values[j]; out[i + 1] = p.values[j + 1]; out[i + 2] = p.values[j + 2]; out[i + 3] = 255;
      }
      return image;
    }
    const table = new Uint8ClampedArray(65536); // stored value + 32768 -> gray level
    const flip = p.inverted !== this.inverted;
    const width = Math.max(this.width, 1e-6);
    for (let stored = -32768; stored < 32768; stored++) {
      const level = ((stored * p.slope + p.intercept - this.center) / width + 0.5) * 255;
      const gray = Math.max(0, Math.min(255, Math.round(level)));
      table[stored + 32768] = flip ? 255 - gray : gray;
    }
    for (let i = 0, j = 0; j < p.values.length; i += 4, j++) {
      const gray = table[p.values[j] + 32768];
      out[i] = out[i + 1] = out[i + 2] = gray; out[i + 3] = 255;
    }
    return image;
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
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    const context = this.canvas.getContext("2d");
    const buffer = new OffscreenCanvas(this.pixels.width, this.pixels.height);
    buffer.getContext("2d").putImageData(this.bitmap(), 0, 0);
    const at = this.place();
    context.imageSmoothingEnabled = at.scale * (this.pixels.fullWidth / this.pixels.width) < 4;
    context.drawImage(buffer, at.x, at.y, at.width, at.height);
    if (this.overlay) this.drawOverlay(context, at);
    this.drawMarks(context, at, ratio);
    const p = this.pixels;
    const parts = [];
    if (this.counts[this.plane] > 1) parts.push(`${this.planeName()} ${this.index + 1}/${this.counts[this.plane]}`);
    if (p.kind !== "rgb") parts.push(`${T("window")} ${round(this.center)}/${round(this.width)}`);
    if (this.zoom !== 1) parts.push(`${T("zoom")} ${this.zoom.toFixed(1)}`);
    this.readout.textContent = parts.join("  ") + (this.measured ? `\n${this.measured}` : "");
    if (this.zoom >= 1.5) this.sharpen();
  }

  drawOverlay(context, at) {
    const { rows, columns, drops } = this.overlay;
    const top = Math.max(...drops.filter(Number.isFinite), 1e-9);
    for (let cell = 0; cell < drops.length; cell++) {
      const strength = Math.max(0, drops[cell] || 0) / top;
      if (strength < 0.05) continue;
      context.fillStyle = `rgba(255, 120, 0, ${0.55 * strength})`;
      const x = cell % columns, y = Math.floor(cell / columns);
      context.fillRect(at.x + (x * at.width) / columns, at.y + (y * at.height) / rows, at.width / columns, at.height / rows);
    }
  }

  drawMarks(context, at, ratio) {
    const toCanvas = ([x, y]) => [at.x + x * at.scale, at.y + y * at.scale];
    context.strokeStyle = "#ffd400"; context.fillStyle = "#ffd400"; context.lineWidth = 2 * ratio;
    if (this.region) {
      const [x, y] = toCanvas([this.region[0], this.region[1]]);
      context.strokeRect(x, y, this.region[2] * at.scale, this.region[3] * at.scale);
    }
    this.measured = "";
    if (!this.marks.length) return;
    context.beginPath();
    this.marks.map(toCanvas).forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
    for (const [x, y] of this.marks.map(toCanvas)) context.fillRect(x - 3 * ratio, y - 3 * ratio, 6 * ratio, 6 * ratio);
    if (this.tool === "measure" && this.marks.length === 2) {
      const length = distance(...this.marks);
      this.measured = this.pixels.spacing ? `${(length * this.pixels.spacing).toFixed(1)} mm` : `${length.toFixed(0)} ${T("no-spacing")}`;
    }
    if (this.tool === "angle" && this.marks.length === 3) this.measured = `${angle(...this.marks).toFixed(1)}°`;
  }

  toImage(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    const at = this.place();
    const clamp = (value, top) => Math.max(0, Math.min(top, value));
    return [
      clamp(((event.clientX - box.left) * ratio - at.x) / at.scale, this.pixels.fullWidth),
      clamp(((event.clientY - box.top) * ratio - at.y) / at.scale, this.pixels.fullHeight),
    ];
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.counts[this.plane] > 1 && !event.ctrlKey) this.setIndex(this.index + Math.sign(event.deltaY));
      else this.setZoom(this.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  setZoom(zoom) { this.zoom = Math.max(0.5, Math.min(20, zoom)); this.draw(); }

  key(event) {
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (step && this.counts[this.plane] > 1 && !event.shiftKey) this.setIndex(this.index + step[0] + step[1]);
    else if (step) { this.panX -= step[0] * 40; this.panY -= step[1] * 40; this.draw(); }
    else if (event.key === "+" || event.key === "=") this.setZoom(this.zoom * 1.2);
    else if (event.key === "-") this.setZoom(this.zoom / 1.2);
    else if (event.key === "0") this.reset();
    else if (event.key.toLowerCase() === "i" && !this.info.color) this.invert();
    else return;
    event.preventDefault();
  }

  press(event) {
    if (!this.pixels) return;
    this.canvas.setPointerCapture(event.pointerId);
    const start = { x: event.clientX, y: event.clientY, center: this.center, width: this.width, panX: this.panX, panY: this.panY };
    const point = this.toImage(event);
    const pan = event.button !== 0 || event.shiftKey || (this.info.color && this.tool === "window");
    if (!pan && this.tool === "measure") this.marks = [point, point];
    if (!pan && this.tool === "angle") this.marks = this.marks.length >= 3 ? [point] : [...this.marks, point];
    const move = (next) => {
      const dx = next.clientX - start.x, dy = next.clientY - start.y;
      const ratio = window.devicePixelRatio || 1;
      if (pan) { this.panX = start.panX + dx * ratio; this.panY = start.panY + dy * ratio; }
      else if (this.tool === "measure") this.marks[1] = this.toImage(next);
      else if (this.tool === "region") {
        const end = this.toImage(next);
        const box = [Math.min(point[0], end[0]), Math.min(point[1], end[1]), Math.abs(end[0] - point[0]), Math.abs(end[1] - point[1])].map(Math.round);
        this.region = box[2] > 3 && box[3] > 3 ? box : null;
      } else if (this.tool === "window") {
        const unit = Math.max(this.defaultWindow[1], 1) / 400;
        this.width = Math.max(1e-3, start.width + dx * unit);
        this.center = start.center + dy * unit;
      }
      this.draw();
    };
    const end = () => { this.canvas.removeEventListener("pointermove", move); this.draw(); };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
    this.canvas.addEventListener("pointercancel", end, { once: true });
    this.draw();
  }

  url(crop) { // what the model is shown: this frame, this window
    const options = new URLSearchParams({ plane: this.plane, index: this.index });
    if (!this.info.color) options.set("window", `${this.center},${this.width}`);
    if (this.inverted) options.set("invert", "1");
    if (crop) {
      const [x, y, width, height] = crop, { fullWidth, fullHeight } = this.pixels;
      options.set("crop", [x, y, Math.min(width, fullWidth - x), Math.min(height, fullHeight - y)].join(","));
    }
    return `qilin-image:${this.id}?${options}`;
  }

  planeName() { return T(Object.keys(this.counts).length > 1 ? this.plane : this.info.plane || "frame"); }

  label() {
    if (this.counts[this.plane] < 2) return "";
    return `${this.planeName()} ${this.index + 1}/${this.counts[this.plane]}`;
  }

  thumbnail() {
    const buffer = document.createElement("canvas");
    const scale = Math.min(1, 480 / Math.max(this.pixels.width, this.pixels.height));
    buffer.width = Math.max(1, this.pixels.width * scale); buffer.height = Math.max(1, this.pixels.height * scale);
    const source = new OffscreenCanvas(this.pixels.width, this.pixels.height);
    source.getContext("2d").putImageData(this.bitmap(), 0, 0);
    const context = buffer.getContext("2d");
    context.drawImage(source, 0, 0, buffer.width, buffer.height);
    if (this.region) {
      const k = buffer.width / this.pixels.fullWidth;
      context.strokeStyle = "#ffd400"; context.lineWidth = 2;
      context.strokeRect(...this.region.map((value) => value * k));
    }
    return buffer.toDataURL("image/jpeg", 0.85);
  }
}

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}
function round(value) { return Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)); }
function distance(a, b) { return Math.hypot(a[0] - b[0], a[1] - b[1]); }
function angle(a, b, c) {
  const first = Math.atan2(a[1] - b[1], a[0] - b[0]), second = Math.atan2(c[1] - b[1], c[0] - b[0]);
  const turn = Math.abs(first - second) * (180 / Math.PI);
  return turn > 180 ? 360 - turn : turn;
}
