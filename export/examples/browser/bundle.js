// Opens a bundle, decodes images and asks the model, in the browser. `openBundle` and `ask` are all that a page of
// your own needs; answers.mjs says what the outputs mean.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { readManifest, requireSame } from "./answers.mjs";

// One thread: more need SharedArrayBuffer, which browsers give only to pages served with COOP and COEP headers.
ort.env.wasm.numThreads = 1;

const OPTIONS = { executionProviders: ["wasm"], logSeverityLevel: 3 };

/** Open the bundle at an address whose files are those of the export. */
export async function openBundle(base) {
  const manifest = await fetchFile(new URL("vfm.json", base));
  const bundle = { base, ...readManifest(JSON.parse(new TextDecoder().decode(manifest))) };
  bundle.before = await openGraph(bundle, "preprocess.onnx");
  bundle.model = await openGraph(bundle, "model.onnx");
  return bundle;
}

/** The bytes of a file of the bundle, which are those of the export. */
export async function readFile({ base, files }, name) {
  const bytes = await fetchFile(new URL(name, base));
  if (!globalThis.crypto?.subtle) {
    throw new Error("This browser checks files only on pages from https:// or from localhost.");
  }
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  requireSame(files, name, hex);
  return bytes;
}

/**
 * Decode an image file to RGB, { data, width, height }: upright, alpha over white.
 *
 * Of a PNG of 8 bits without alpha these are the bytes in the file, as every other client has them: no colour profile
 * is applied, and nothing is multiplied by alpha and back. Translucent places may differ by one level from other
 * clients. A JPEG is decoded by the browser's own decoder, whose pixels may differ by a few levels.
 */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
    imageOrientation: "from-image",
  });
  const { width, height } = bitmap;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  // Read from memory: a canvas kept by the graphics card may round.
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { data, width, height };
}

/** Ask about one decoded image; each output has one row. */
export async function ask({ before, model }, { data, width, height }) {
  const inputs = await before.run({ image: new ort.Tensor("uint8", data, [height, width, 3]) });
  const wanted = model.inputNames.map((name) => [name, inputs[name]]);
  return model.run(Object.fromEntries(wanted));
}

async function openGraph(bundle, name) {
  const options = { ...OPTIONS };
  const weights = `${name}.data`; // where they are kept apart
  if (Object.hasOwn(bundle.files, weights)) {
    options.externalData = [{ path: weights, data: await readFile(bundle, weights) }];
  }
  return ort.InferenceSession.create(await readFile(bundle, name), options);
}

async function fetchFile(address) {
  // Asked anew: a bundle that was replaced must not be mixed with the old one's files.
  const reply = await fetch(address, { cache: "no-cache" });
  if (!reply.ok) throw new Error(`${address.pathname} cannot be had: ${reply.status}.`);
  return new Uint8Array(await reply.arrayBuffer());
}
