// One image on the screen, with its masks above it, and a highlighted mask above these.

import { paint, palette, rasterise, rgba } from "./masks.js";

const MAX_PIXELS = 2.5e6; // of a canvas: on dense screens masks are drawn coarser than the screen
// The highlighted mask is filled once, and outlined in black and then in white, moved by some pixels in all directions.
const NOTHING = rgba(0, 0, 0, 0);
const WHITE = rgba(255, 255, 255, 255);
const HIGHLIGHT = [
  { fill: rgba(255, 255, 255, 100), edge: NOTHING, moves: [[0, 0]] },
  { fill: NOTHING, edge: rgba(0, 0, 0, 255), moves: around(2) },
  { fill: NOTHING, edge: WHITE, moves: around(1) },
];

function around(distance) {
  const steps = [-distance, 0, distance];
  return steps.flatMap((x) => steps.map((y) => [x, y]));
}

export class Stage {
  constructor(title) {
    this.element = document.createElement("section");
    this.element.className = "stage";
    this.title = document.createElement("h2");
    this.frame = document.createElement("div");
    this.frame.className = "frame";
    this.problem = document.createElement("p");
    this.problem.className = "problem";
    this.layers = ["picture", "masks", "highlight"].map((name) => {
      const canvas = document.createElement("canvas");
      canvas.className = name;
      return canvas;
    });
    this.frame.append(...this.layers, this.problem);
    this.element.append(this.title, this.frame);
    this.name = title;
    this.labels = new Uint16Array(0); // of the screen: 1 + the number of the visible mask; see masks.js
    this.clear();
  }

  clear() {
    this.image = null;
    this.picture = null;
    this.masks = []; // of the image, largest first
    this.visible = []; // those that pass the sliders
    this.report("");
  }

  /** Shows a problem above the picture; "" for none. */
  report(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
  }

  /** The size of the image in pixels. An image that failed has the size of its picture, if there is one. */
  get size() {
    const of = this.image?.width ? this.image : this.picture;
    return of ? { width: of.width, height: of.height } : null;
  }

  /** Fits the canvases to the page. Returns whether that changed anything. */
  resize() {
    const { clientWidth, clientHeight } = this.frame;
    const area = Math.max(1, clientWidth * clientHeight);
    this.density = Math.min(devicePixelRatio, Math.sqrt(MAX_PIXELS / area));
    const width = Math.max(1, Math.round(clientWidth * this.density));
    const height = Math.max(1, Math.round(clientHeight * this.density));
    if (this.layers[0].width === width && this.layers[0].height === height) return false;
    for (const canvas of this.layers) Object.assign(canvas, { width, height });
    this.labels = new Uint16Array(width * height);
    this.pixels = new ImageData(width, height);
    return true;
  }

  /** The part of the image that is on the screen: `zoom` 1 shows all of it, around `cx` and `cy` (0 to 1). */
  look({ cx, cy, zoom }) {
    const { width, height } = this.size ?? { width: 1, height: 1 };
    const canvas = this.layers[0];
    const scale = Math.min(canvas.width / width, canvas.height / height) * zoom;
    this.view = { x: cx * width - canvas.width / 2 / scale, y: cy * height - canvas.height / 2 / scale, scale };
  }

  drawPicture() {
    const canvas = this.layers[0];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    const { x, y, scale } = this.view;
    const { width, height } = this.size;
    context.imageSmoothingEnabled = scale < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, -x * scale, -y * scale, width * scale, height * scale);
  }

  drawMasks(hidden) {
    const canvas = this.layers[1];
    this.labels.fill(0);
    rasterise(this.visible, this.view, this.labels, canvas.width, canvas.height);
    const { fills, edges } = palette(this.visible);
    if (hidden) {
      fills.fill(0);
      edges.fill(0);
    }
    paint(this.labels, canvas.width, canvas.height, fills, edges, new Uint32Array(this.pixels.data.buffer));
    canvas.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  /** Draws the outline of a mask, and its prompt point. Nothing for null. */
  drawHighlight(mask) {
    const canvas = this.layers[2];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!mask) return;
    const { x, y, scale } = this.view;
    const [left, top, w, h] = mask.box;
    // The box on the screen, with a pixel around it for the outline.
    const x0 = Math.max(0, Math.floor((left - x) * scale) - 1);
    const y0 = Math.max(0, Math.floor((top - y) * scale) - 1);
    const width = Math.min(canvas.width, Math.ceil((left + w + 1 - x) * scale) + 1) - x0;
    const height = Math.min(canvas.height, Math.ceil((top + h + 1 - y) * scale) + 1) - y0;
    if (width > 0 && height > 0) {
      const labels = new Uint8Array(width * height);
      const pixels = new ImageData(width, height);
      const drawing = new OffscreenCanvas(width, height);
      rasterise([mask], { x: x + x0 / scale, y: y + y0 / scale, scale }, labels, width, height);
      for (const { fill, edge, moves } of HIGHLIGHT) {
        paint(labels, width, height, Uint32Array.of(NOTHING, fill), Uint32Array.of(NOTHING, edge), new Uint32Array(pixels.data.buffer));
        drawing.getContext("2d").putImageData(pixels, 0, 0);
        for (const [dx, dy] of moves) context.drawImage(drawing, x0 + dx * this.density, y0 + dy * this.density);
      }
    }
    const [px, py] = mask.point;
    context.beginPath();
    context.arc((px + 0.5 - x) * scale, (py + 0.5 - y) * scale, 4 * this.density, 0, 2 * Math.PI);
    context.fillStyle = "#fff";
    context.strokeStyle = "#000";
    context.lineWidth = 1.5 * this.density;
    context.fill();
    context.stroke();
  }

  /** The place in the image, in pixels, of a place on the page. */
  toImage(clientX, clientY) {
    const box = this.frame.getBoundingClientRect();
    const { x, y, scale } = this.view;
    return { x: x + ((clientX - box.left) * this.density) / scale, y: y + ((clientY - box.top) * this.density) / scale };
  }

  /** The topmost visible mask at a place in the image, or null. */
  maskAt({ x, y }) {
    const canvas = this.layers[0];
    const column = Math.floor((x - this.view.x) * this.view.scale);
    const row = Math.floor((y - this.view.y) * this.view.scale);
    if (column < 0 || row < 0 || column >= canvas.width || row >= canvas.height) return null;
    return this.visible[this.labels[column * canvas.height + row] - 1] ?? null;
  }
}
