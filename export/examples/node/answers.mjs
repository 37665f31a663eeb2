// What the outputs of a bundle's model mean, and whether they are those of the export. Imports nothing: the page of
// ../browser uses it too. `outputs` holds by name what ONNX Runtime gives: { data, dims }, one row each.

const FORMATS = [1, 2]; // of bundles that are understood here
const UNHEEDED = ["tiles", "value_range", "group_thresholds", "tokenizer"]; // would change the answers
const MIN_SCORE = 0.05; // boxes of a lower score come and go with the last digit
const MIN_IOU = 0.99; // least overlap of boxes that are the same
const UNSEEN = ["no_face", "face_too_small", "too_blurred"]; // decided before the model is asked

const WAYS = {
  classification: compareScores,
  multilabel: compareScores,
  detection: compareBoxes,
  deepfake: compareVerdicts,
};

/** Return the contract and the list of files of a parsed vfm.json, or throw. */
export function readManifest({ contract, files }) {
  if (!FORMATS.includes(contract.format)) {
    throw new Error(`The bundle's format is ${contract.format}; known: ${FORMATS.join(", ")}.`);
  }
  const unheeded = UNHEEDED.filter((name) => Object.hasOwn(contract, name));
  if (unheeded.length) throw new Error(`The bundle needs ${unheeded.join(", ")}, which is not heeded here.`);
  for (const { task } of Object.values(contract.heads ?? { "": contract })) {
    if (Object.hasOwn(WAYS, task)) continue;
    throw new Error(`The task is ${task}; known: ${Object.keys(WAYS).join(", ")}.`);
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

/**
 * Compare the model's answer with a row of golden.json: { difference, changed, found, expected }. Of several heads the
 * one that differs most counts.
 */
export function compare(contract, row, outputs) {
  const results = headsOf(contract, outputs).map(({ name, head, outputs }) => {
    const result = WAYS[head.task](head, name ? row.heads[name] : row, outputs);
    // NaN compares as small; it is the largest difference there is.
    const difference = Number.isNaN(result.difference) ? Infinity : result.difference;
    if (!name) return { ...result, difference };
    const { found, expected } = result;
    return { ...result, difference, found: `${name}: ${found}`, expected: `${name}: ${expected}` };
  });
  return results.reduce((worst, next) => (isWorse(next, worst) ? next : worst));
}

function isWorse(next, worst) {
  if (next.changed !== worst.changed) return next.changed;
  return next.difference > worst.difference;
}

/** The line of one golden image. */
export function line(name, { difference, changed, found, expected }, tolerance) {
  const word = passes({ difference, changed }, tolerance) ? "OK" : "DIFFERS";
  const answer = changed ? `${found}, not ${expected}` : found;
  const [most, allowed] = [difference, tolerance].map(short);
  return `${name}: ${word} (${answer}; largest difference ${most}, allowed ${allowed})`;
}

function short(value) {
  return 0 < value && value < 1e-3 ? value.toExponential(1) : `${Number(value.toPrecision(2))}`;
}

/** Whether an answer is the one of the export. */
export function passes({ difference, changed }, tolerance) {
  return difference <= tolerance && !changed;
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

/** Why an answer is not sure: "unlike_training", "low_score" or null. */
export function doubt(contract, outputs) {
  const { thresholds = null, max_distance = null } = contract.rules ?? {};
  if (max_distance !== null && outputs.distances.data[0] > max_distance) return "unlike_training";
  if (contract.task !== "classification" || thresholds === null) return null;
  const { index, score } = labelled(contract, outputs)[0];
  return score < thresholds[index] ? "low_score" : null;
}

function compareScores(contract, row, outputs) {
  const scores = [...outputs.scores.data];
  const { label } = labelled(contract, outputs)[0];
  const differences = scores.map((score, index) => Math.abs(score - row.scores[index]));
  if (scores.length !== row.scores.length) differences.push(Infinity);
  const difference = Math.max(...differences);
  return { difference, changed: label !== row.label, found: label, expected: row.label };
}

function compareBoxes(contract, row, outputs) {
  const now = boxesOf(contract, outputs);
  const then = row.boxes.map((box, at) => ({
    box,
    index: row.labels[at],
    score: row.scores[at],
  }));
  const apart = [...toPartners(then, now), ...toPartners(now, then)];
  const lost = apart.filter((difference) => difference === Infinity).length;
  const [found, expected] = [now, then].map(
    (boxes) => `${boxes.filter(({ score }) => score >= MIN_SCORE).length} boxes`,
  );
  return {
    difference: Math.max(0, ...apart.filter((difference) => difference !== Infinity)),
    changed: lost > 0,
    found: lost ? `${found}, ${lost} of either without a partner` : found,
    expected,
  };
}

// How far the score of each box is from that of its partner; infinite without one.
function toPartners(first, second) {
  return first
    .filter(({ score }) => !(score < MIN_SCORE)) // NaN is kept, and found
    .map((one) => {
      const same = second.filter((other) => one.index === other.index && near(one.box, other.box));
      // Of several boxes at one place, the one whose score is nearest.
      return Math.min(Infinity, ...same.map((other) => Math.abs(one.score - other.score)));
    });
}

function near(a, b) {
  const area = ([left, top, right, bottom]) => Math.max(0, right - left) * Math.max(0, bottom - top);
  const inner = [0, 1, 2, 3].map((side) => (side < 2 ? Math.max : Math.min)(a[side], b[side]));
  const shared = area(inner);
  if (shared / Math.max(area(a) + area(b) - shared, 1e-9) >= MIN_IOU) return true;
  // Two boxes without area at one place are the same.
  return a.every((value, side) => Math.abs(value - b[side]) < 1e-3);
}

function compareVerdicts(contract, row, outputs) {
  const { temperature } = contract.rules.decision;
  const answer = verdict(contract, outputs);
  const heat = row.heatmaps.flat();
  const differences = [...outputs.heatmaps.data].map((value, at) => Math.abs(value - heat[at]));
  differences.push(Math.abs(answer.score - sigmoid(row.logits / temperature)));
  const expected = named(row);
  if (UNSEEN.includes(row.reason)) {
    return { difference: Math.max(...differences), changed: false, found: expected, expected };
  }
  differences.push(Math.abs(answer.score - row.score));
  const found = named(answer);
  return { difference: Math.max(...differences), changed: found !== expected, found, expected };
}

function sigmoid(value) {
  return 1 / (1 + Math.exp(-value));
}

function named({ label, reason }) {
  return reason === null ? label : `${label} (${reason})`;
}
