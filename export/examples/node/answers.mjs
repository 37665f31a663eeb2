// What the outputs of a bundle's model mean, and how they are written for `vfm-runtime check BUNDLE --answers`. Imports
// nothing: the page of ../browser uses it too. `outputs` holds by name what ONNX Runtime gives: { data, dims }, one row each.

const FORMATS = [1, 2]; // of bundles that are understood here
const UNHEEDED = ["tiles", "value_range", "group_thresholds"]; // would change the answers
const TASKS = ["classification", "multilabel", "detection", "deepfake"];

/** Return the contract and the list of files of a parsed vfm.json, or throw. */
export function readManifest({ contract, files }) {
  if (!FORMATS.includes(contract.format)) {
    throw new Error(`The bundle's format is ${contract.format}; known: ${FORMATS.join(", ")}.`);
  }
  const unheeded = UNHEEDED.filter((name) => Object.hasOwn(contract, name));
  if (unheeded.length) throw new Error(`The bundle needs ${unheeded.join(", ")}, which is not heeded here.`);
  for (const { task } of Object.values(contract.heads ?? { "": contract })) {
    if (TASKS.includes(task)) continue;
    throw new Error(`The task is ${task}; known: ${TASKS.join(", ")}.`);
  }
  return { contract, files };
}

/** Each head as { name, head, outputs }; the name of a single one is empty. */
export function headsOf(contract, outputs) {
  if (!contract.heads) return [{ name: "", head: contract, outputs }];
  return Object.entries(contract.heads).map(([name, head]) => {
    const own = Object.entries(outputs)
      .filter(([port]) => port.startsWith(`${name}.`) || !port.includes(".")) // its own, or shared
      .map(([port, values]) => [port.replace(`${name}.`, ""), values]);
    return { name, head, outputs: Object.fromEntries(own) };
  });
}

/** Throw unless a file's sha256, in hex, is the one that vfm.json lists. */
export function requireSame(files, name, sha256) {
  if (!Object.hasOwn(files, name)) throw new Error(`vfm.json does not list ${name}.`);
  if (files[name] !== sha256) {
    throw new Error(`${name} is damaged: its sha256 is not that of vfm.json.`);
  }
}

/** An answer as plain values, for a file `{ images: [...] }` that `vfm-runtime check BUNDLE --answers FILE` judges. */
export function toPlain(file, outputs) {
  const rows = Object.entries(outputs).map(([name, { data, dims }]) => {
    return [name, { data: Array.from(data, Number), dims }]; // class indices come as BigInt
  });
  return { file, outputs: Object.fromEntries(rows) };
}

/** Labels with their scores, best first, of a model that labels images. */
export function labelled({ labels }, outputs) {
  const scores = [...outputs.scores.data];
  return scores
    .map((score, index) => ({ label: labels[index], index, score }))
    .sort((a, b) => b.score - a.score);
}

/** Boxes of a detector, best first: { box: [left, top, right, bottom], index, label, score }. */
export function boxesOf({ labels }, outputs) {
  const corners = outputs.boxes.data;
  const ids = [...outputs.labels.data].map(Number); // they come as BigInt
  return ids.map((index, at) => ({
    box: [...corners.slice(4 * at, 4 * at + 4)],
    index,
    label: labels[index],
    score: outputs.scores.data[at],
  }));
}

/** Of one crop: { label, reason, score }. */
export function verdict({ rules }, outputs) {
  const { temperature, threshold, max_distance, real_below } = rules.decision;
  const value = outputs.logits.data[0] / temperature;
  const score = sigmoid(value);
  if (max_distance !== null && outputs.distances.data[0] > max_distance) {
    return { label: "undecided", reason: "unlike_training", score };
  }
  if (value > (threshold ?? 0)) return { label: "fake", reason: null, score };
  if (real_below === null || value < real_below) return { label: "real", reason: null, score };
  return { label: "undecided", reason: "near_threshold", score };
}

/** Why a prediction is not to be relied on: "unlike_training", "low_score" or null. */
export function abstainReason(contract, outputs) {
  const { thresholds = null, max_distance = null } = contract.rules ?? {};
  if (max_distance !== null && outputs.distances.data[0] > max_distance) return "unlike_training";
  if (contract.task !== "classification" || thresholds === null) return null;
  const { index, score } = labelled(contract, outputs)[0];
  return score < thresholds[index] ? "low_score" : null;
}

function sigmoid(value) {
  return 1 / (1 + Math.exp(-value));
}
