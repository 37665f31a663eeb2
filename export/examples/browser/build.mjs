// Gather the page, ONNX Runtime's WebAssembly and a bundle in one folder that any web server can serve:
//
//     npm ci --ignore-scripts
//     node build.mjs BUNDLE [FOLDER]
//     python -m http.server -d FOLDER -b 127.0.0.1

import { existsSync } from "node:fs";
import { cp, mkdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const RUNTIME = path.join(HERE, "node_modules", "onnxruntime-web", "dist");
const PAGE = ["index.html", "style.css", "app.js", "bundle.js", "../node/answers.mjs"];
const WASM = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
// What a page needs of a bundle.
const PARTS = ["vfm.json", "preprocess.onnx", "model.onnx", "model.onnx.data", "golden"];
const OPTIONAL = ["model.onnx.data", "golden"];

async function build(bundle, folder) {
  if (existsSync(folder) && !existsSync(path.join(folder, WASM[0]))) {
    throw new Error(`${folder} is there and is no such page. Remove it, or name another folder.`);
  }
  const draft = `${folder}.new`;
  await rm(draft, { recursive: true, force: true });
  await mkdir(path.join(draft, "bundle"), { recursive: true });
  for (const name of PAGE) await copy(path.join(HERE, name), path.join(draft, path.basename(name)));
  for (const name of WASM) {
    await copy(path.join(RUNTIME, name), path.join(draft, name), "Run: npm ci --ignore-scripts");
  }
  for (const name of PARTS) {
    const skip = OPTIONAL.includes(name);
    await copy(path.join(bundle, name), path.join(draft, "bundle", name), "Give a bundle.", skip);
  }
  await rm(folder, { recursive: true, force: true });
  await rename(draft, folder);
}

async function copy(from, to, remedy = "", skip = false) {
  try {
    await cp(from, to, { recursive: true });
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
    if (!skip) throw new Error(`${from} is not there. ${remedy}`);
  }
}

const [bundle, folder = path.join(HERE, "build"), ...more] = process.argv.slice(2);
if (!bundle || more.length) {
  console.error("usage: node build.mjs BUNDLE [FOLDER]");
  process.exitCode = 2;
} else {
  try {
    await build(path.resolve(bundle), path.resolve(folder));
    console.log(path.resolve(folder));
  } catch (error) {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}
