// The page: shows the answer to an image, and asks about the golden images.

import {
  abstainReason, boxesOf, headsOf, labelled, toPlain, verdict,
} from "./answers.mjs";
import { ask, decode, openBundle, readFile } from "./bundle.js";

const LEAST = { detection: 0.3, multilabel: 0.5 }; // least score that is shown, where none was fitted
const MOST = 5; // labels listed
const COLORS = ["#1f5fbf", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e", "#a16207"];
const REASONS = {
  low_score: "Not sure: the score is below what this label needs.",
  unlike_training: "Not sure: this is unlike the images that the model learnt from.",
  near_threshold: "The score lies between that of a real one and that of a fake.",
};

const words = new URLSearchParams(location.search);
const at = (id) => document.getElementById(id);
let bundle;
let shown; // the image on the page and its answer
let chosen = null; // least score, where the slider was moved

async function start() {
  const base = new URL(`${(words.get("bundle") ?? "bundle").replace(/\/*$/, "")}/`, location.href);
  if (base.origin !== location.origin) throw new Error("A bundle comes from this page's own site.");
  bundle = await openBundle(base);
  describe(bundle.contract);
  wire();
  say("Ready. Images stay in this browser.");
  if (words.has("check")) await check();
}

function describe({ task, labels, backbone, license }) {
  const facts = { Task: task, Labels: labels.length, Backbone: backbone, Licence: license ?? "not known" };
  for (const [name, value] of Object.entries(facts)) {
    const fact = add(at("facts"), "div");
    add(fact, "dt", name);
    add(fact, "dd", value);
  }
  at("crops").hidden = task !== "deepfake";
}

function wire() {
  // Without thresholds of its own, one for each label.
  const free = headsOf(bundle.contract, {})
    .map(({ head }) => head)
    .filter(({ task, rules }) => task in LEAST && !rules?.thresholds);
  at("least").hidden = !free.length;
  at("threshold").value = LEAST[free[0]?.task] ?? 0;
  at("threshold").addEventListener("input", () => {
    chosen = Number(at("threshold").value);
    show();
  });
  at("file").addEventListener("change", (event) => look(event.target.files[0]));
  at("drop").addEventListener("dragover", (event) => event.preventDefault());
  at("drop").addEventListener("drop", (event) => {
    event.preventDefault();
    look(event.dataTransfer.files[0]);
  });
  at("replay").addEventListener("click", check);
  at("file").disabled = at("replay").disabled = false;
}

async function look(file) {
  if (!file) return;
  say(`Looking at ${file.name} ...`);
  try {
    const image = await decode(file);
    const begun = performance.now();
    shown = { image, outputs: await ask(bundle, image) };
    show();
    const took = Math.round(performance.now() - begun);
    say(`${file.name}: ${image.width} x ${image.height} pixels, answered in ${took} ms.`);
  } catch (error) {
    say(`${file.name} cannot be judged: ${error.message}`, "error");
  }
}

function show() {
  at("value").textContent = percent(Number(at("threshold").value));
  if (!shown) return;
  const ways = { detection: showBoxes, deepfake: showVerdict };
  draw(shown.image);
  at("answer").hidden = false;
  at("heads").replaceChildren();
  for (const { name, head, outputs } of headsOf(bundle.contract, shown.outputs)) {
    const block = at("heads").appendChild(at("head").content.cloneNode(true).firstElementChild);
    const part = (kind) => block.querySelector(`.${kind}`);
    const { headline, reason } = (ways[head.task] ?? showLabels)(head, outputs, part("labels"));
    part("headline").textContent = name ? `${name}: ${headline}` : headline;
    part("reason").textContent = REASONS[reason] ?? "";
  }
}

function showLabels(head, outputs, list) {
  const rows = labelled(head, outputs);
  for (const { label, score } of rows.slice(0, MOST)) bar(list, label, score, COLORS[0]);
  const applying = rows.filter(({ index, score }) => score >= least(head, index));
  const all = applying.map(({ label }) => label).join(", ") || "none applies";
  return { headline: head.task === "multilabel" ? all : rows[0].label, reason: abstainReason(head, outputs) };
}

function showBoxes(head, outputs, list) {
  const boxes = boxesOf(head, outputs).filter(({ index, score }) => score >= least(head, index));
  const context = at("picture").getContext("2d");
  context.lineWidth = Math.max(1, Math.max(shown.image.width, shown.image.height) / 300);
  for (const { box, index } of boxes.toReversed()) {
    const [left, top, right, bottom] = box;
    context.strokeStyle = COLORS[index % COLORS.length];
    context.strokeRect(left, top, right - left, bottom - top);
  }
  for (const { label, index, score } of boxes) {
    bar(list, label, score, COLORS[index % COLORS.length]);
  }
  const headline = boxes.length === 1 ? "1 object" : `${boxes.length} objects`;
  return { headline, reason: abstainReason(head, outputs) };
}

function showVerdict(head, outputs, list) {
  const { label, reason, score } = verdict(head, outputs);
  bar(list, "probability of fake", score, COLORS[4]);
  heat(outputs.heatmaps);
  return { headline: label, reason };
}

// Red over the picture: where it looks forged.
function heat({ data, dims }) {
  const [, height, width] = dims;
  const small = document.createElement("canvas");
  Object.assign(small, { width, height });
  const pixels = new ImageData(width, height);
  data.forEach((value, index) => pixels.data.set([220, 38, 38, 160 * value], 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  at("picture").getContext("2d").drawImage(small, 0, 0, shown.image.width, shown.image.height);
}

function draw({ data, width, height }) {
  const pixels = new ImageData(width, height);
  for (let index = 0; index < width * height; index++) {
    pixels.data.set(data.subarray(3 * index, 3 * index + 3), 4 * index);
    pixels.data[4 * index + 3] = 255;
  }
  Object.assign(at("picture"), { width, height });
  at("picture").getContext("2d").putImageData(pixels, 0, 0);
}

/** Ask about the golden images, and offer the answers for download; the state is `data-state` of #check: done or error. */
async function check() {
  const state = (value) => (at("check").dataset.state = value);
  at("outcome").textContent = "Asking ...";
  at("answers").hidden = true;
  state("running");
  try {
    const text = new TextDecoder().decode(await readFile(bundle, "golden/golden.json"));
    const images = [];
    for (const { file } of JSON.parse(text).images) {
      const image = await decode(new Blob([await readFile(bundle, `golden/${file}`)]));
      images.push(toPlain(file, await ask(bundle, image)));
    }
    at("answers").href = URL.createObjectURL(new Blob([JSON.stringify({ images })]));
    at("answers").hidden = false;
    at("outcome").textContent = `Answered ${images.length} golden images.`;
    state("done");
  } catch (error) {
    state("error");
    at("outcome").textContent = `error: ${error.message}`;
  }
}

function least({ task, rules }, index) {
  return rules?.thresholds?.[index] ?? chosen ?? LEAST[task];
}

function bar(list, label, score, color) {
  const row = add(list, "li");
  add(row, "span", label);
  const track = add(row, "span");
  track.className = "track";
  const fill = add(track, "span");
  fill.style.width = `${100 * score}%`;
  fill.style.background = color;
  add(row, "span", percent(score)).className = "number";
}

function add(parent, tag, text = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  return parent.appendChild(element);
}

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function say(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
}

start().catch((error) => {
  say(`error: ${error.message}`, "error");
  at("check").dataset.state = "error";
});
