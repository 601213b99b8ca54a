"use strict";
// The tools of the viewers: one bar that acts on the image that was looked at last.

class Toolbar {
  constructor(host, names, api) { // names: the tools and buttons of this page, in order
    Object.assign(this, { host, api, viewer: null, tool: "window", linked: true, buttons: {} });
    host.setAttribute("role", "toolbar");
    host.dataset.label = "toolbar";
    const actions = {
      "zoom-in": () => this.viewer.setZoom(this.viewer.zoom * 1.25), "zoom-out": () => this.viewer.setZoom(this.viewer.zoom / 1.25),
      invert: () => this.viewer.image.invert(), reset: () => this.viewer.image.reset(), undo: () => this.viewer.removeMarks(),
      link: () => { this.linked = !this.linked; }, planes: () => api.togglePlanes(this.viewer),
    };
    for (const name of names) {
      if (name === "window-values") { this.addWindow(); continue; }
      const isTool = name === "window" || name === "pan" || name in POINTS;
      const node = textButton(name, () => {
        if (isTool) this.choose(name); else if (this.viewer || name === "link") actions[name]();
        this.refresh();
      });
      node.dataset.tool = name;
      if (isTool || ["invert", "link", "planes"].includes(name)) node.setAttribute("aria-pressed", "false");
      host.append(node);
      this.buttons[name] = node;
    }
    this.refresh();
  }

  addWindow() {
    this.presets = element("select");
    this.presets.dataset.label = this.presets.dataset.title = "preset";
    this.presets.addEventListener("change", () => {
      const values = this.choices()[this.presets.value];
      if (values) this.viewer.image.setWindow(...values);
      this.refresh();
    });
    const number = (name) => {
      const node = element("input", { type: "number", step: "any" });
      node.addEventListener("change", () => {
        const values = [Number(this.center.value), Number(this.width.value)];
        if (values.every(Number.isFinite) && values[1] > 0) this.viewer.image.setWindow(...values);
        this.refresh();
      });
      const label = element("span");
      label.dataset.text = name;
      this.windowNode.append(element("label", {}, label, node));
      return node;
    };
    this.windowNode = element("span", { className: "window" }, this.presets);
    this.center = number("center");
    this.width = number("width");
    this.host.append(this.windowNode);
  }

  choices() { return { "default-window": this.viewer.info.window, ...this.viewer.info.presets }; }

  choose(tool) {
    this.tool = tool;
    for (const viewer of this.api.viewers()) viewer.setTool(tool);
    this.refresh();
  }

  activate(viewer) {
    if (viewer && viewer.tool !== this.tool) viewer.setTool(this.tool);
    this.viewer = viewer;
    for (const other of this.api.viewers()) other.node.classList.toggle("active", other === viewer && this.api.viewers().length > 1);
    this.refresh();
  }

  refresh() {
    const { viewer, buttons } = this;
    this.host.hidden = !viewer;
    if (!viewer) return;
    const { image, info } = viewer;
    const pressed = { invert: image.inverted, link: this.linked, planes: image.viewers.length > 1, [this.tool]: true };
    for (const [name, node] of Object.entries(buttons)) if (node.hasAttribute("aria-pressed")) node.setAttribute("aria-pressed", Boolean(pressed[name]));
    if (buttons.invert) buttons.invert.hidden = info.color;
    if (buttons.window) buttons.window.hidden = info.color;
    if (buttons.planes) buttons.planes.hidden = !(image.isVolume || info.stack);
    if (buttons.link) buttons.link.hidden = new Set(this.api.viewers().map((other) => other.image)).size < 2;
    if (!this.windowNode) return;
    this.windowNode.hidden = info.color;
    const choices = this.choices();
    const current = Object.keys(choices).find((name) => choices[name][0] === image.center && choices[name][1] === image.width) ?? "custom";
    this.presets.replaceChildren(...[...Object.keys(choices), ...(current === "custom" ? ["custom"] : [])].map((name) =>
      element("option", { value: name, selected: name === current, textContent: T("presets")[name] ?? T(name) })));
    this.center.value = round(image.center);
    this.width.value = round(image.width);
  }
}
