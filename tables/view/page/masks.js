// Masks from COCO's compressed run lengths, and their pixels on the screen.

const GOLDEN_RATIO = 0.618034; // steps of this size around the colour circle give consecutive masks distinct hues
const FILL = 0.45; // opacity
const TILE = 32; // pixels: labels are transposed in blocks that fit into the cache

/** The masks of an image, largest first, as `image` in source.js gives them. */
export function masksOf(image) {
  const order = image.area.map((_, row) => row).sort((a, b) => image.area[b] - image.area[a] || a - b);
  return order.map((row, rank) => ({
    id: row,
    area: image.area[row],
    share: image.area[row] / Math.max(1, image.height * image.width),
    iou: image.predicted_iou[row],
    stability: image.stability_score[row],
    box: image.boxes[row],
    point: image.points[row],
    crop: image.crops[row],
    colour: colour(rank),
    ...decode(image.rles[row], image.height),
  }));
}

/**
 * The runs of a mask by column: column `x0 + c` has the rows from ys[k] up to, but without, ys[k + 1],
 * for k = starts[c], starts[c] + 2 ... starts[c + 1] - 2.
 */
export function decode(counts, height) {
  const ys = [];
  const starts = [];
  let x0 = 0;
  let position = 0;
  lengths(counts).forEach((length, index) => {
    const end = position + length;
    for (; index % 2 === 1 && position < end; ) {
      const x = Math.floor(position / height);
      const top = position - x * height;
      const bottom = Math.min(height, top + end - position);
      if (starts.length === 0) x0 = x;
      while (starts.length <= x - x0) starts.push(ys.length);
      ys.push(top, bottom);
      position += bottom - top;
    }
    position = end;
  });
  starts.push(ys.length);
  return { x0, starts: Int32Array.from(starts), ys: Int32Array.from(ys) };
}

// Numbers in two's complement, five bits per character, lowest first; from the fourth number on, the difference from the
// number two before (rleFrString in maskApi.c of pycocotools).
function lengths(counts) {
  const numbers = [];
  for (let at = 0; at < counts.length; ) {
    let number = 0;
    let shift = 0;
    let digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      number |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32 && at < counts.length);
    if (digit & 16 && shift < 32) number |= -1 << shift;
    if (numbers.length > 2) number += numbers[numbers.length - 2];
    numbers.push(number);
  }
  return numbers;
}

/**
 * Writes the label `first + i` to all pixels of mask i, later masks over earlier ones. Labels are column by column, as
 * run lengths are. `view`: x and y of the upper left corner of the screen in image pixels, screen pixels per image pixel.
 */
export function rasterise(masks, view, labels, width, height, first = 1) {
  const { x, y, scale } = view;
  masks.forEach(({ x0, starts, ys }, index) => {
    const label = first + index;
    const last = x0 + starts.length - 1;
    const from = Math.max(0, Math.ceil((x0 - x) * scale - 0.5));
    const to = Math.min(width, Math.ceil((last - x) * scale - 0.5));
    for (let column = from; column < to; column++) {
      const c = Math.floor(x + (column + 0.5) / scale) - x0;
      if (c < 0 || c >= starts.length - 1) continue;
      const base = column * height;
      for (let k = starts[c]; k < starts[c + 1]; k += 2) {
        const top = Math.max(0, Math.ceil((ys[k] - y) * scale - 0.5));
        const bottom = Math.min(height, Math.ceil((ys[k + 1] - y) * scale - 0.5));
        if (top < bottom) labels.fill(label, base + top, base + bottom);
      }
    }
  });
}

/** Colours the labels: pixels (32-bit, row by row) get fills[label], or edges[label] where the label changes. */
export function paint(labels, width, height, fills, edges, pixels) {
  for (let x0 = 0; x0 < width; x0 += TILE) {
    const x1 = Math.min(width, x0 + TILE);
    for (let y0 = 0; y0 < height; y0 += TILE) {
      const y1 = Math.min(height, y0 + TILE);
      for (let x = x0; x < x1; x++) {
        const right = x + 1 < width ? height : 0;
        for (let y = y0, at = x * height + y0; y < y1; y++, at++) {
          const label = labels[at];
          const below = y + 1 < height ? 1 : 0;
          const edge = label !== labels[at + right] || label !== labels[at + below];
          // The edge between two masks takes the colour of the one that is above or to the left, if it is one.
          pixels[y * width + x] = edge ? edges[label || labels[at + right] || labels[at + below]] : fills[label];
        }
      }
    }
  }
}

/** The colours of masks by label, for `paint`; label 0 is no mask. */
export function palette(masks) {
  const fills = new Uint32Array(masks.length + 1);
  const edges = new Uint32Array(masks.length + 1);
  masks.forEach(({ colour: [r, g, b] }, index) => {
    fills[index + 1] = rgba(r, g, b, 255 * FILL);
    edges[index + 1] = rgba((r + 255) / 2, (g + 255) / 2, (b + 255) / 2, 255);
  });
  return { fills, edges };
}

export function rgba(r, g, b, a) {
  return ((a << 24) | (b << 16) | (g << 8) | r) >>> 0; // the order of bytes in ImageData on little-endian machines
}

/** The intersection over union of two masks of images of the same size. */
export function iou(a, b) {
  let shared = 0;
  const from = Math.max(a.x0, b.x0);
  const to = Math.min(a.x0 + a.starts.length, b.x0 + b.starts.length) - 1;
  for (let x = from; x < to; x++) {
    let i = a.starts[x - a.x0];
    let j = b.starts[x - b.x0];
    while (i < a.starts[x - a.x0 + 1] && j < b.starts[x - b.x0 + 1]) {
      shared += Math.max(0, Math.min(a.ys[i + 1], b.ys[j + 1]) - Math.max(a.ys[i], b.ys[j]));
      if (a.ys[i + 1] < b.ys[j + 1]) i += 2;
      else j += 2;
    }
  }
  return shared / Math.max(1, a.area + b.area - shared);
}

function colour(rank) {
  const hue = (rank * GOLDEN_RATIO) % 1;
  const saturation = rank % 2 ? 0.85 : 0.6;
  const channel = (n) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}
