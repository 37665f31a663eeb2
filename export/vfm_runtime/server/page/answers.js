// Cards for answers. What a server or a file names is text, never markup: it enters through textContent alone.

import { colorOf } from "./boxes.js";

const MOST_ROWS = 60;
export const SHOWN_FROM = 0.3; // as vfm_runtime.tasks.detection.THRESHOLD
const REASONS = {
  low_score: "Not sure: the score is lower than this label needs.",
  unlike_training: "Not sure: this is unlike what the model has learnt from.",
  no_face: "No face was found.",
  face_too_small: "The faces are too small to judge.",
  too_blurred: "The faces are too blurred to judge.",
  too_few_frames: "Too few frames can be judged.",
  frames_disagree: "The frames disagree.",
  near_threshold: "The score is too close to the threshold.",
};
const KINDS = {
  classification: "Label",
  multilabel: "Labels",
  detection: "Found",
  deepfake: "Verdict",
  embedding: "Embedding",
};

/** An element with properties, a class and children; strings become text. */
export function make(tag, { className, ...properties } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A probability for people: 98.3 %. */
export function percent(score) {
  if (score > 0.999 && score < 1) return "> 99.9\u00a0%";
  if (score < 0.001 && score > 0) return "< 0.1\u00a0%";
  return `${(score * 100).toFixed(1)}\u00a0%`;
}

/** The answers by the name of their head; a model of one head has one without a name. */
export function headsOf({ task, answer }) {
  return task === "multi_head" ? Object.entries(answer) : [["", answer]];
}

/** “2 cat, 1 dog”, the most frequent first. */
export function counted(boxes) {
  const counts = new Map();
  for (const { label } of boxes) counts.set(label, (counts.get(label) ?? 0) + 1);
  const pairs = [...counts].sort((a, b) => b[1] - a[1]);
  const named = pairs.slice(0, 6).map(([label, count]) => `${count} ${label}`);
  return named.join(", ") + (pairs.length > 6 ? `, and ${pairs.length - 6} more classes` : "");
}

/** An answer in one sentence, for those who do not see the cards. */
export function spoken(reply) {
  return headsOf(reply).map(([name, one]) => (name ? `${name}: ` : "") + said(one)).join(" ");
}

function said(answer) {
  const kind = answer.task;
  if (kind === "deepfake") return `${answer.label}. ${answer.explanation}`;
  const unsure = answer.reason ? ` ${REASONS[answer.reason] ?? answer.reason}` : "";
  if (kind === "multilabel") return `${answer.labels.join(", ") || "No label applies"}.${unsure}`;
  if (kind === "detection") return "Boxes are drawn and listed.";
  if (!answer.label) return "The answer is listed.";
  return `${answer.label}, ${percent(answer.score)}.${unsure}`;
}

/**
 * The card of one answer.
 *
 * @param boxes Of a detector: `id` of its slider; `wide`, whether boxes below the model's own thresholds are there;
 *   `labels` and `thresholds` of its classes; `least`, the score that the slider was moved to, or null; `onShow(boxes, least)`, `onChoose(box)`.
 */
export function card(name, answer, boxes) {
  const kind = answer.task;
  const build = { classification, multilabel, deepfake, detection, embedding }[kind] ?? plain;
  const word = KINDS[kind] ?? kind;
  const title = name ? [make("strong", {}, name), ` · ${word.toLowerCase()}`] : [word];
  return make("article", { className: `card ${kind}` },
    make("h3", { className: "kind" }, ...title), ...build(answer, boxes));
}

function unsure(reason) {
  return reason ? make("p", { className: "unsure" }, REASONS[reason] ?? `Not sure: ${reason}.`) : null;
}

function bar(share, mark) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  const track = make("span", { className: "track", "aria-hidden": "true" }, fill);
  if (mark === undefined) return track;
  const line = make("span", { className: "mark" });
  line.style.left = `${mark * 100}%`;
  track.append(line);
  return track;
}

export function barList(rows, applying = []) {
  const items = rows.map(({ label, score }) => {
    const applies = applying.includes(label);
    return make("li", { className: applies ? "applies" : "" },
      make("span", { className: "name" }, label, applies ? make("span", { className: "unseen" }, ", applies") : null),
      make("span", { className: "number" }, percent(score)), bar(score));
  });
  return make("ol", { className: "bars" }, ...items);
}

function classification(answer) {
  return [
    make("p", { className: "headline" }, answer.label),
    make("p", { className: "soft" }, `Score ${percent(answer.score)}`),
    unsure(answer.reason),
    barList(answer.top),
  ];
}

function multilabel(answer) {
  const chips = answer.labels.map((label) => make("li", {}, label));
  return [
    chips.length
      ? make("ul", { className: "chips" }, ...chips)
      : make("p", { className: "headline" }, "None applies"),
    unsure(answer.reason),
    barList(answer.top, answer.labels),
  ];
}

function detection(answer, { id, wide, labels, thresholds, least: moved, onShow, onChoose }) {
  const all = answer.boxes.map((item) => ({ ...item, color: colorOf(labels.indexOf(item.label)) }));
  const headline = make("p", { className: "headline" });
  const summary = make("p", { className: "soft" });
  const list = make("ol", { className: "found" });
  const shown = make("output", { htmlFor: id });
  const slider = make("input", {
    type: "range", id, min: "0.05", max: "1", step: "0.01", value: String(moved ?? SHOWN_FROM),
  });
  const show = () => {
    const byModel = moved === null && (thresholds !== null || !wide);
    const asked = moved ?? SHOWN_FROM;
    const least = (label) => (byModel ? (thresholds?.[labels.indexOf(label)] ?? 0) : asked);
    const boxes = all.filter(({ label, score }) => score >= least(label));
    headline.textContent = `${boxes.length || "No"} ${boxes.length === 1 ? "object" : "objects"}`;
    summary.textContent = boxes.length ? counted(boxes) : "None reaches this score; a lower one may show more.";
    shown.textContent = byModel ? "as the model has it" : asked.toFixed(2);
    list.replaceChildren(...foundRows(boxes, onChoose));
    onShow(boxes, moved);
  };
  slider.addEventListener("input", () => { moved = Number(slider.value); show(); });
  show();
  return [
    headline, summary,
    unsure(answer.reason),
    make("div", { className: "slide" }, make("label", { htmlFor: id }, "Least score"), shown, slider),
    list,
  ];
}

function foundRows(boxes, onChoose) {
  const rows = boxes.slice(0, MOST_ROWS).map((item) => {
    const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.background = item.color;
    const [left, top, right, bottom] = item.box;
    const size = `${Math.round(right - left)} × ${Math.round(bottom - top)} px`;
    const row = make("button", { type: "button" }, swatch,
      make("span", { className: "name" }, item.label),
      make("span", { className: "number" }, percent(item.score)),
      make("span", { className: "place" }, `${size} at ${Math.round(left)}, ${Math.round(top)}`));
    for (const event of ["pointerenter", "focus", "click"]) row.addEventListener(event, () => onChoose(item));
    for (const event of ["pointerleave", "blur"]) row.addEventListener(event, () => onChoose(null));
    return make("li", {}, row);
  });
  if (boxes.length > MOST_ROWS) rows.push(make("li", { className: "soft" }, `and ${boxes.length - MOST_ROWS} more`));
  return rows;
}

function deepfake(answer) {
  const grade = ["real", "fake"].includes(answer.label) ? answer.label : "undecided";
  return [
    make("p", { className: `headline verdict ${grade}` }, answer.label),
    make("p", {}, answer.explanation),
    answer.score === null ? null : scale(answer),
    answer.is_video ? frameList(answer) : null,
    answer.notes.length ? make("ul", { className: "notes" }, ...answer.notes.map((note) => make("li", {}, note))) : null,
  ];
}

function embedding({ vector }) {
  const first = vector.slice(0, 4).map((value) => value.toFixed(3)).join(", ");
  return [
    make("p", { className: "headline" }, `${vector.length} numbers`),
    make("p", { className: "soft" }, `${first}, …`),
  ];
}

/** Of a task that this page does not know: its values as they are. */
function plain(answer) {
  return [make("pre", { className: "plain" }, JSON.stringify(answer, null, 2))];
}

function scale(answer) {
  const rule = answer.calibrated ? "threshold" : "assumed threshold";
  return make("div", { className: "scale" },
    make("p", { className: "ends" }, make("span", {}, "Score for fake"), make("strong", { className: "number" }, percent(answer.score))),
    bar(answer.score, answer.threshold),
    make("p", { className: "soft" }, `The mark is the ${rule}, ${percent(answer.threshold)}.`));
}

function frameList(answer) {
  const rows = answer.frames.slice(0, MOST_ROWS).map((frame) => make("li", {},
    make("span", { className: "name" }, `${frame.time.toFixed(2)} s`, make("span", { className: "place" }, ` frame ${frame.frame}`)),
    make("span", { className: "number" }, percent(frame.score)), bar(frame.score, answer.threshold)));
  const count = `${answer.frames.length} ${answer.frames.length === 1 ? "crop" : "crops"} from ${answer.num_asked} frames`;
  return make("div", {}, make("h4", {}, `Frame by frame`), make("p", { className: "soft" }, count),
    make("ol", { className: "bars frames", tabIndex: 0, "aria-label": "Frames" }, ...rows));
}
