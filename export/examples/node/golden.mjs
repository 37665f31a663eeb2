// Ask a bundle in Node about its golden images:
//
//     npm ci --ignore-scripts
//     node golden.mjs bundle/ > answers.json
//     vfm-runtime check bundle/ --answers answers.json
//
// Prints the outputs of each image as JSON; the last command says whether they are those of the export. `ask` is all that
// a client of your own needs; answers.mjs says what its outputs mean.

import { createHash } from "node:crypto";
import { createReadStream, realpathSync } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { decode } from "fast-png";
import * as ort from "onnxruntime-node";

import { readManifest, requireSame, toPlain } from "./answers.mjs";

/** Open a bundle whose files are those of the export. */
export async function open(folder) {
  const manifest = JSON.parse(await readFile(path.join(folder, "vfm.json"), "utf8"));
  const bundle = { folder, ...readManifest(manifest) };
  // Weights that ONNX Runtime opens by itself, where they are kept apart.
  if (Object.hasOwn(bundle.files, "model.onnx.data")) await check(bundle, "model.onnx.data");
  bundle.before = await openGraph(bundle, "preprocess.onnx");
  bundle.model = await openGraph(bundle, "model.onnx");
  return bundle;
}

/** Ask about one image, { data: RGB bytes, width, height }; each output has one row. */
export async function ask({ before, model }, { data, width, height }) {
  const inputs = await before.run({ image: new ort.Tensor("uint8", data, [height, width, 3]) });
  const wanted = model.inputNames.map((name) => [name, inputs[name]]);
  return model.run(Object.fromEntries(wanted));
}

/** Decode a PNG of 8 bits a channel: grey, RGB, or either with alpha, which is laid over white. */
export function openPng(bytes, name) {
  const { data, width, height, channels, depth, palette } = decode(bytes);
  if (depth !== 8 || palette) {
    throw new Error(`${name} has a palette or ${depth} bits a channel. Save it as RGB of 8 bits.`);
  }
  const colors = channels < 3 ? 1 : 3;
  const rgb = new Uint8Array(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const start = pixel * channels;
    const alpha = channels > colors ? data[start + colors] : 255;
    for (let channel = 0; channel < 3; channel++) {
      const value = data[start + (channel % colors)];
      rgb[3 * pixel + channel] = Math.round((value * alpha + 255 * (255 - alpha)) / 255);
    }
  }
  return { data: rgb, width, height };
}

async function openGraph(bundle, name) {
  return ort.InferenceSession.create(await check(bundle, name), { logSeverityLevel: 3 }); // errors alone
}

// The path of a file whose bytes are those of the export; read in pieces, so any size will do.
async function check({ folder, files }, name) {
  const hash = createHash("sha256");
  const file = path.join(folder, name);
  for await (const piece of createReadStream(file)) hash.update(piece);
  requireSame(files, name, hash.digest("hex"));
  return file;
}

async function askGolden(folder) {
  const bundle = await open(folder);
  const golden = JSON.parse(await readFile(await check(bundle, "golden/golden.json"), "utf8"));
  const images = [];
  for (const { file } of golden.images) {
    const name = `golden/${file}`;
    const image = openPng(await readFile(await check(bundle, name)), name);
    images.push(toPlain(file, await ask(bundle, image)));
  }
  return { images };
}

async function main() {
  const [folder, ...more] = process.argv.slice(2);
  if (!folder || more.length) {
    console.error("usage: node golden.mjs BUNDLE");
    return 2;
  }
  try {
    console.log(JSON.stringify(await askGolden(folder)));
    return 0;
  } catch (error) {
    console.error(`error: ${error.message}`);
    return 1;
  }
}

const started = process.argv[1] && realpathSync(process.argv[1]);
if (started === fileURLToPath(import.meta.url)) process.exitCode = await main();
