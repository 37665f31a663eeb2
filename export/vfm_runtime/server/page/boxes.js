// Boxes on a canvas that lies over the picture.

// As in vfm_runtime/media/drawing.py: a class has one color wherever it is drawn.
const PALETTE = [
  "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080",
  "#9a6324", "#808000", "#000075", "#f032e6", "#e6a000", "#469990",
];

const HIGH = 19; // of a caption

/** Color of a class by its number; a class that is not listed gets the first. */
export function colorOf(index) {
  return PALETTE[Math.max(0, index) % PALETTE.length];
}

/** Black or white, whichever is read more easily on the color. */
export function inkOn(color) {
  const part = (at) => {
    const value = parseInt(color.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const light = 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
  return light > 0.179 ? "#000" : "#fff";
}

/** Where a picture of this size lies in the stage that shows the whole of it. */
export function fitted(canvas, size) {
  const scale = Math.min(canvas.clientWidth / size.width, canvas.clientHeight / size.height);
  return {
    scale,
    left: (canvas.clientWidth - size.width * scale) / 2,
    top: (canvas.clientHeight - size.height * scale) / 2,
  };
}

/**
 * Draw boxes with their captions, the best on top.
 *
 * @param canvas As large as the stage.
 * @param boxes `{box, label, score, color}`, corners in pixels of the picture; those that a user draws have no score.
 * @param size `{width, height}` of the picture.
 * @param chosen The box to bring out, or null.
 */
export function drawBoxes(canvas, boxes, size, chosen) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * density);
  canvas.height = Math.round(canvas.clientHeight * density);
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  const place = fitted(canvas, size);
  const order = [...boxes.filter((item) => item !== chosen).reverse(), ...(chosen ? [chosen] : [])];
  const strength = (item) => (chosen && item !== chosen ? 0.3 : 1);
  for (const item of order) {
    pen.globalAlpha = strength(item);
    drawBox(pen, item, place);
  }
  // Captions after all boxes, so that no line crosses a letter; the best first, and none over another.
  const taken = [];
  for (const item of order.reverse()) {
    pen.globalAlpha = strength(item);
    drawCaption(pen, item, place, taken);
  }
}

function drawBox(pen, item, place) {
  const [left, top, right, bottom] = item.box;
  const x = place.left + left * place.scale;
  const y = place.top + top * place.scale;
  const width = Math.max(1, (right - left) * place.scale);
  const height = Math.max(1, (bottom - top) * place.scale);
  pen.lineJoin = "round";
  // Light beneath the color: dark classes stay visible on dark pictures.
  pen.strokeStyle = "rgb(255 255 255 / 0.75)";
  pen.lineWidth = 4.5;
  pen.strokeRect(x, y, width, height);
  pen.strokeStyle = item.color;
  pen.lineWidth = 2.5;
  pen.strokeRect(x, y, width, height);
}

function drawCaption(pen, item, place, taken) {
  pen.font = "600 12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const name = item.label.length > 28 ? `${item.label.slice(0, 27)}…` : item.label;
  const text = item.score === undefined ? name : `${name} ${item.score.toFixed(2)}`;
  const width = pen.measureText(text).width + 10;
  const x = place.left + item.box[0] * place.scale - 1;
  const y = place.top + item.box[1] * place.scale;
  const left = Math.max(0, Math.min(x, pen.canvas.clientWidth - width));
  // Above the box; inside where there is no room.
  const top = y >= HIGH + 1 ? y - HIGH - 1 : Math.max(0, y);
  const crosses = (other) => Math.abs(other.top - top) < HIGH && left < other.left + other.width && other.left < left + width;
  if (taken.some(crosses)) return;
  taken.push({ left, top, width });
  pen.fillStyle = item.color;
  pen.fillRect(left, top, width, HIGH);
  pen.fillStyle = inkOn(item.color);
  pen.fillText(text, left + 5, top + HIGH / 2 + 0.5);
}
