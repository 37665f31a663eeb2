// Boxes that a user draws on a picture, or gives as numbers, to teach a detector by.

import { colorOf, drawBoxes, fitted } from "./boxes.js";

const at = (id) => document.getElementById(id);
const LEAST_SIDE = 4; // of a box, in pixels of the screen: less is a click

/**
 * Wire the picture to draw on.
 *
 * @param label Name of the class, for the captions.
 * @return `open(file)`, `close()`, and `marked()`: the file and its boxes, or null.
 */
export function wireMarking(label) {
  const state = { file: null, url: "", size: null, boxes: [], from: null, to: null };
  const canvas = at("marks");

  function open(file) {
    close();
    state.file = file;
    state.url = URL.createObjectURL(file);
    at("marked").alt = `The picture to teach by: ${file.name}`;
    at("marked").src = state.url;
    at("marking").hidden = false;
    show();
  }

  function close() {
    URL.revokeObjectURL(state.url);
    at("marked").removeAttribute("src");
    at("marking").hidden = true;
    Object.assign(state, { file: null, url: "", size: null, boxes: [], from: null, to: null });
  }

  function marked() {
    return state.file && { file: state.file, boxes: state.boxes };
  }

  function show() {
    const count = state.boxes.length;
    at("marks-text").value = count ? JSON.stringify(state.boxes) : "";
    at("marks-undo").disabled = !count;
    canvas.setAttribute("aria-label", `${count} ${count === 1 ? "box" : "boxes"} drawn on the picture to teach by`);
    paint();
  }

  function paint() {
    if (!state.size) return;
    const boxes = state.from ? [...state.boxes, corners()] : state.boxes;
    const items = boxes.map((box) => ({ box, label: label() || "?", color: colorOf(0) }));
    drawBoxes(canvas, items.reverse(), state.size, null);
  }

  /** Where a pointer is, in pixels of the picture. */
  function placeOf(event) {
    const { left, top, scale } = fitted(canvas, state.size);
    const within = (value, most) => Math.round(Math.max(0, Math.min(most, value)));
    return [within((event.offsetX - left) / scale, state.size.width), within((event.offsetY - top) / scale, state.size.height)];
  }

  function corners() {
    const [[x, y], [u, v]] = [state.from, state.to];
    return [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!state.size || event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    state.from = state.to = placeOf(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.from) return;
    state.to = placeOf(event);
    paint();
  });
  canvas.addEventListener("pointerup", () => {
    if (!state.from) return;
    const box = corners();
    const { scale } = fitted(canvas, state.size);
    if (Math.min(box[2] - box[0], box[3] - box[1]) * scale >= LEAST_SIDE) state.boxes.push(box);
    state.from = null;
    show();
  });
  canvas.addEventListener("pointercancel", () => { state.from = null; paint(); });
  at("marks-undo").addEventListener("click", () => { state.boxes.pop(); show(); });
  at("marks-close").addEventListener("click", close);
  // Without a pointer boxes are typed; what cannot be read leaves those that there are.
  at("marks-text").addEventListener("change", () => {
    state.boxes = parsed(at("marks-text").value) ?? state.boxes;
    show();
  });
  at("marked").addEventListener("load", () => {
    state.size = { width: at("marked").naturalWidth, height: at("marked").naturalHeight };
    show();
  });
  new ResizeObserver(paint).observe(canvas);
  return { open, close, marked, paint };
}

/** Boxes as JSON has them, or null; a single one may stand alone. */
function parsed(text) {
  try {
    const values = JSON.parse(text || "[]");
    const boxes = typeof values[0] === "number" ? [values] : values;
    const right = (box) => Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);
    return Array.isArray(boxes) && boxes.every(right) ? boxes : null;
  } catch {
    return null;
  }
}
