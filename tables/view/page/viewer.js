// One image, of one run or of two side by side: masks, sliders, details of the mask under the pointer or pinned.

import { iou, masksOf } from "./masks.js";
import { change, go, read } from "./state.js";
import { Stage } from "./stage.js";

const MAX_ZOOM = 60;
const CLICK_PIXELS = 4; // a pointer that moves further drags
const STEPS_WITHOUT_PICTURE = new Set(["fetch", "decode"]); // of failed images: these cannot be read
const SAME_IOU = 0.5; // two masks of different runs with a higher IoU have one colour
const SMALLEST_SHARE = 1e-5; // of the image: the left end of the sliders of the area

const $ = (id) => document.getElementById(id);
const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
const score = (value) => value.toFixed(3);

function failure({ status, step, error }) {
  return `This image ${status === "failed" ? "failed" : "was quarantined"} in the step ${step}: ${error}`;
}

export class Viewer {
  constructor(source) {
    this.source = source;
    this.stages = source.runs.map((run) => new Stage(run.name));
    $("stages").append(...this.stages.map((stage) => stage.element));
    this.search = new AbortController();
    this.hovered = null; // a place in the image
    this.dirty = new Set(); // what to draw in the next frame: view, masks, highlight
    this.sliders = this.makeSliders();
    new ResizeObserver(() => this.draw("view")).observe($("stages"));
    this.stages.forEach((stage, run) => this.listen(stage, run));
  }

  /** Shows the image in the address, and applies the rest of the state. */
  async render() {
    const { image } = read();
    $("title").textContent = image;
    $("title").title = image;
    document.title = `${image}: maskmill`;
    this.showSliders();
    if (image === this.shown) {
      this.filter();
      this.draw("view");
      return;
    }
    this.leave();
    this.shown = image;
    const { signal } = (this.search = new AbortController());
    $("place").textContent = "reading";
    $("previous").disabled = $("next").disabled = true;
    this.stages.forEach((stage) => stage.clear());
    this.draw("view");
    this.loaded = Promise.all(this.stages.map((stage, run) => this.load(stage, run, image, signal)));
    await this.loaded;
    if (signal.aborted) return;
    this.matchColours();
    $("place").textContent = "";
    $("viewer").dataset.ready = "";
    await this.findNeighbours(signal);
  }

  async load(stage, run, id, signal) {
    const heading = this.stages.length > 1 ? stage.name : "";
    stage.title.textContent = heading;
    try {
      const found = await this.source.find(run, id);
      if (signal.aborted) return;
      if (!found) throw new Error("This run has no such image, or it is not done yet.");
      if (run === 0) this.at = found.at;
      const [image, picture] = await Promise.all([this.source.image(run, found.at), this.picture(run, found)]);
      if (signal.aborted) return;
      stage.image = image;
      stage.masks = masksOf(image);
      if (picture instanceof Error) stage.report(`The image cannot be shown: ${picture.message}`);
      else stage.picture = picture;
      if (image.status !== "ok") stage.report(failure(image));
    } catch (error) {
      if (signal.aborted) return;
      stage.report(error.message);
    }
    this.filter();
    this.draw("view");
  }

  /** The picture of an image; an Error if there is none; null if there cannot be one. */
  async picture(run, { at, step }) {
    if (STEPS_WITHOUT_PICTURE.has(step)) return null;
    return this.source.picture(run, at).catch((error) => error);
  }

  /** Gives masks of the second run the colour of the similar mask of the first. */
  matchColours() {
    const [first, ...others] = this.stages;
    for (const stage of others) {
      for (const mask of stage.masks) {
        const same = this.similar(mask, first.masks);
        if (same && iou(mask, same) >= SAME_IOU) mask.colour = same.colour;
      }
    }
    if (others.length > 0) this.draw("masks");
  }

  async findNeighbours(signal) {
    this.neighbours = {};
    if (!this.at) return;
    const { text, show } = read();
    for (const step of [1, -1]) {
      const other = await this.source.neighbour(this.at, step, text, show, signal).catch(() => null);
      if (signal.aborted) return;
      this.neighbours[step] = other;
      $(step === 1 ? "next" : "previous").disabled = !other;
    }
    $("viewer").dataset.neighbours = "";
  }

  leave() {
    this.search.abort();
    this.shown = this.at = this.hovered = null;
    this.neighbours = {};
    delete $("viewer").dataset.ready;
    delete $("viewer").dataset.neighbours;
  }

  turn(step) {
    const other = this.neighbours?.[step];
    if (other) go({ image: other.id, pin: "", view: "" });
  }

  // Sliders

  makeSliders() {
    const lowest = (name) => Math.floor(20 * Math.min(...this.source.runs.map((run) => run[name]), 0.95)) / 20;
    const share = {
      min: 0,
      max: 100,
      step: 1,
      toState: (value) => (value <= 0 ? 0 : SMALLEST_SHARE ** (1 - value / 100)),
      toSlider: (value) => (value <= 0 ? 0 : 100 * (1 - Math.log(value) / Math.log(SMALLEST_SHARE))),
      text: percent,
    };
    const scores = { max: 1, step: 0.005, toState: Number, toSlider: Number, text: score };
    const sliders = [
      { key: "iou", label: "Predicted IoU, at least", ...scores, min: lowest("lowest_iou") },
      { key: "stability", label: "Stability score, at least", ...scores, min: lowest("lowest_stability") },
      { key: "min", label: "Area, at least", ...share },
      { key: "max", label: "Area, at most", ...share },
    ];
    for (const slider of sliders) {
      const row = document.createElement("label");
      row.className = "slider";
      const label = document.createElement("span");
      label.textContent = slider.label;
      slider.output = document.createElement("output");
      slider.input = document.createElement("input");
      Object.assign(slider.input, { type: "range", min: slider.min, max: slider.max, step: slider.step, name: slider.key });
      slider.input.addEventListener("input", () => {
        const value = Number(slider.input.value);
        // The left end of a score is no limit: the thresholds of the run already are one.
        change({ [slider.key]: value <= slider.min ? 0 : slider.toState(value) });
        this.showSliders();
        this.filter();
        this.draw("masks");
      });
      row.append(label, slider.output, slider.input);
      $("sliders").append(row);
    }
    this.count = document.createElement("p");
    this.count.id = "count";
    $("sliders").prepend(this.count);
    return sliders;
  }

  showSliders() {
    const state = read();
    for (const slider of this.sliders) {
      slider.input.value = Math.max(slider.min, slider.toSlider(state[slider.key]));
      slider.output.textContent = slider.text(Math.max(slider.toState(slider.min), state[slider.key]));
    }
  }

  filter() {
    const { iou: lowest, stability, min, max } = read();
    for (const stage of this.stages) {
      stage.visible = stage.masks.filter(
        (mask) => mask.iou >= lowest && mask.stability >= stability && mask.share >= min && mask.share <= max,
      );
    }
    const counts = this.stages.map((stage) => `${stage.visible.length} of ${stage.masks.length}`);
    this.count.textContent = `${counts.join(" and ")} masks`;
    if (this.stages.length > 1) {
      this.stages.forEach((stage, run) => (stage.title.textContent = `${stage.name}: ${counts[run]} masks`));
    }
  }

  // Drawing

  /** Draws in the next frame: "view" (everything), "masks" or "highlight". */
  draw(what) {
    if (this.dirty.size === 0) requestAnimationFrame(() => this.frame());
    this.dirty.add(what);
  }

  frame() {
    const all = this.dirty.has("view");
    const masks = all || this.dirty.has("masks");
    this.dirty.clear();
    if ($("viewer").hidden) return;
    const state = read();
    for (const stage of this.stages) {
      const resized = stage.resize();
      if (all || resized) {
        stage.look(this.look(state));
        stage.drawPicture();
      }
      if (masks || resized) stage.drawMasks(state.masks === 0);
    }
    const marked = this.marked(state);
    this.stages.forEach((stage, run) => stage.drawHighlight(marked[run]));
    this.describe(state, marked);
  }

  look({ view }) {
    const [cx, cy, zoom] = view.split(",").map(Number);
    if (![cx, cy, zoom].every(Number.isFinite)) return { cx: 0.5, cy: 0.5, zoom: 1 };
    return { cx, cy, zoom: Math.min(MAX_ZOOM, Math.max(1, zoom)) };
  }

  /** The mask to highlight in each run: the pinned one, or the one under the pointer; in the other run the most similar. */
  marked({ pin }) {
    const [run, id] = pin.split(":").map(Number);
    const pinned = this.stages[run]?.masks.find((mask) => mask.id === id);
    if (pinned) return this.stages.map((stage, other) => (other === run ? pinned : this.similar(pinned, stage.visible)));
    if (!this.hovered) return this.stages.map(() => null);
    const under = this.stages[this.hovered.run].maskAt(this.hovered);
    return this.stages.map((stage, other) => (other === this.hovered.run ? under : under && this.similar(under, stage.visible)));
  }

  similar(mask, masks) {
    let best = null;
    let highest = 0;
    for (const other of masks) {
      // The areas alone limit the IoU.
      if (Math.min(mask.area, other.area) <= highest * Math.max(mask.area, other.area)) continue;
      const value = iou(mask, other);
      if (value > highest) [best, highest] = [other, value];
    }
    return best;
  }

  /** Details of the highlighted masks, as a table. */
  describe({ pin }, marked) {
    const heading = document.createElement("h2");
    const shown = marked.filter(Boolean);
    if (shown.length === 0) {
      const hint = document.createElement("p");
      const empty = this.stages.every((stage) => stage.masks.length === 0);
      hint.textContent = empty ? "No masks." : "Point at a mask to see its scores; click to pin it.";
      heading.textContent = "Mask";
      $("details").replaceChildren(heading, hint);
      return;
    }
    heading.textContent = pin ? "Pinned mask" : "Mask";
    const both = marked.length > 1 && shown.length > 1 ? iou(...shown) : null;
    const rows = [
      ...(marked.length > 1 ? [["run", this.stages.map((stage) => stage.name)]] : []),
      ["mask_id", marked.map((mask) => mask?.id)],
      ["predicted IoU", marked.map((mask) => mask && score(mask.iou))],
      ["stability", marked.map((mask) => mask && score(mask.stability))],
      ["area", marked.map((mask) => mask && `${mask.area.toLocaleString("en")} px`)],
      ["of the image", marked.map((mask) => mask && percent(mask.share))],
      ["box", marked.map((mask) => mask?.box.join(", "))],
      ["point", marked.map((mask) => mask?.point.map((value) => +value.toFixed(1)).join(", "))],
      ["crop", marked.map((mask) => mask?.crop.join(", "))],
      ...(both === null ? [] : [["IoU of the two", [score(both)]]]),
    ];
    const table = document.createElement("table");
    for (const [name, values] of rows) {
      const row = table.insertRow();
      const head = document.createElement("th");
      head.textContent = name;
      row.append(head, ...values.map((value) => Object.assign(document.createElement("td"), { textContent: value ?? "-" })));
    }
    $("details").replaceChildren(heading, table);
  }

  // Pointer and keys

  listen(stage, run) {
    const { frame } = stage;
    let start = null; // of a drag
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = { x: event.clientX, y: event.clientY, look: this.look(read()), moved: false };
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => {
      if (!stage.view) return;
      if (!start) {
        this.hovered = { run, ...stage.toImage(event.clientX, event.clientY) };
        this.draw("highlight");
        return;
      }
      const [dx, dy] = [event.clientX - start.x, event.clientY - start.y];
      start.moved ||= Math.hypot(dx, dy) > CLICK_PIXELS;
      if (!start.moved || !stage.size) return;
      const { cx, cy, zoom } = start.look;
      const unit = stage.density / stage.view.scale;
      this.show(cx - (dx * unit) / stage.size.width, cy - (dy * unit) / stage.size.height, zoom);
    });
    frame.addEventListener("pointerup", (event) => {
      if (start && !start.moved) this.click(run, stage.maskAt(stage.toImage(event.clientX, event.clientY)));
      start = null;
    });
    frame.addEventListener("pointercancel", () => (start = null));
    frame.addEventListener("pointerleave", () => {
      this.hovered = null;
      this.draw("highlight");
    });
    frame.addEventListener("dblclick", () => this.show(0.5, 0.5, 1));
    frame.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 300), stage, stage.toImage(event.clientX, event.clientY));
      },
      { passive: false },
    );
  }

  click(run, mask) {
    const pin = mask ? `${run}:${mask.id}` : "";
    change({ pin: pin === read().pin ? "" : pin });
    this.draw("highlight");
  }

  /** Zooms by a factor; a place in the image stays where it is on the screen. */
  zoom(factor, stage = this.stages[0], place = null) {
    if (!stage.size) return;
    const { cx, cy, zoom } = this.look(read());
    const next = Math.min(MAX_ZOOM, Math.max(1, zoom * factor));
    const keep = zoom / next;
    const [x, y] = place ? [place.x / stage.size.width, place.y / stage.size.height] : [cx, cy];
    this.show(x + (cx - x) * keep, y + (cy - y) * keep, next);
  }

  show(cx, cy, zoom) {
    const within = (value) => Math.min(1, Math.max(0, value)).toFixed(4);
    change({ view: zoom === 1 ? "" : `${within(cx)},${within(cy)},${zoom.toFixed(3)}` });
    this.draw("view");
  }

  /** Pins the next larger (-1) or smaller (1) visible mask. */
  step(direction) {
    const [run, id] = read().pin.split(":").map(Number);
    const stage = this.stages[run] ?? this.stages[0];
    const at = stage.visible.findIndex((mask) => mask.id === id && this.stages[run]);
    const next = stage.visible[at < 0 ? 0 : at + direction];
    if (next) change({ pin: `${this.stages.indexOf(stage)}:${next.id}` });
    this.draw("highlight");
  }

  /** Returns whether the key did something. */
  key(key) {
    const actions = {
      ArrowLeft: () => this.turn(-1),
      ArrowRight: () => this.turn(1),
      ArrowUp: () => this.step(-1),
      ArrowDown: () => this.step(1),
      m: () => {
        change({ masks: 1 - read().masks });
        this.draw("masks");
      },
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.show(0.5, 0.5, 1),
      Escape: () => {
        if (read().pin) this.click(0, null);
        else go({ image: "", pin: "", view: "" });
      },
    };
    const action = actions[key] ?? actions[key.toLowerCase()];
    action?.();
    return Boolean(action);
  }
}
