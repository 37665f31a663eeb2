// The demo page: ask with a file, show the answer. The token lives in a variable and nowhere else.

import { card, counted, headsOf, make, spoken } from "./answers.js";
import { drawBoxes } from "./boxes.js";
import { send, Trouble } from "./network.js";
import { wireTaught } from "./taught.js";

const SCORES_FROM = 0.05; // boxes below are not fetched; the slider filters those that are
const MOST_RETRIES = 5;
const HINTS = {
  classification: "The label and its scores appear here.",
  multilabel: "The labels that apply appear here.",
  detection: "What is found appears here.",
  deepfake: "Real or fake, and why, appears here.",
};

const at = (id) => document.getElementById(id);
const state = {
  token: "", models: [], file: null, url: "", asking: null, timer: 0, retries: 0,
  shown: {}, size: null, chosen: null, least: {}, // by head
};

// ----------------------------------------------------------------- models

async function loadModels() {
  clearTrouble();
  try {
    state.models = (await send("GET", "v2/models", { token: state.token })).models;
  } catch (trouble) {
    showTrouble(trouble, loadModels);
    return;
  }
  const several = state.models.length > 1;
  const chosen = at("model").value;
  at("model").replaceChildren(...state.models.map(({ name }) => make("option", { value: name }, name)));
  if (state.models.some(({ name }) => name === chosen)) at("model").value = chosen;
  at("model-field").hidden = !several;
  at("token-form").hidden = true;
  showModel();
  if (state.file) ask();
}

function currentModel() {
  return state.models.find(({ name }) => name === at("model").value) ?? null;
}

function showModel() {
  const model = currentModel();
  if (!model) return void (at("about").textContent = "This server has no model.");
  at("version").replaceChildren(...model.versions.map((name) => make("option", { value: name }, name)));
  at("version").value = model.default;
  at("version-field").hidden = model.versions.length < 2;
  at("cards").dataset.hint = HINTS[model.task] ?? "The answer appears here.";
  const noun = (model.task === "multi_head" ? "head" : "label") + (model.labels.length === 1 ? "" : "s");
  const labels = `${model.labels.length} ${noun}`;
  const about = state.models.length > 1 ? [] : [make("strong", {}, model.name)];
  about.push(make("span", {}, model.task === "multi_head" ? "several heads" : model.task));
  const names = make("details", {}, make("summary", {}, labels), make("p", {}, model.labels.join(", ")));
  if (!model.ready) about.push(make("span", {}, "still loading"));
  at("about").replaceChildren(...about, names);
  taught.show();
}

// ----------------------------------------------------------------- asking

function parameters() {
  const model = currentModel();
  const asked = new URLSearchParams();
  if (model) asked.set("model", model.name);
  if (model?.versions.length > 1) asked.set("version", at("version").value);
  if (model?.task === "detection") asked.set("threshold", String(SCORES_FROM));
  else if (model?.draws) asked.set("draw", "true"); // boxes are drawn by the page
  return asked;
}

async function ask({ again = false } = {}) {
  stop();
  if (!again) state.retries = 0;
  const control = new AbortController();
  state.asking = control;
  clearTrouble();
  setBusy(true);
  const path = `predict?${parameters()}`;
  const body = new FormData();
  body.append("file", state.file);
  const started = performance.now();
  try {
    const answer = await send("POST", path, { token: state.token, body, signal: control.signal, onSending: showSending });
    const trip = performance.now() - started;
    setBusy(false);
    showAnswer(answer);
    showRequest(answer, trip, path);
    taught.ask();
  } catch (trouble) {
    // Another question, or Cancel, has taken over.
    if (state.asking !== control) return;
    setBusy(false);
    clearAnswer();
    showTrouble(trouble, () => ask({ again: true }));
  }
}

function stop() {
  clearInterval(state.timer);
  const asking = state.asking;
  state.asking = null;
  asking?.abort();
}

function cancel() {
  stop();
  setBusy(false);
  clearAnswer();
  say("Cancelled.");
  at("file").focus();
}

function setBusy(busy) {
  clearTimeout(state.busy);
  at("cards").classList.toggle("stale", busy);
  at("request").classList.toggle("stale", busy);
  at("stage").setAttribute("aria-busy", String(busy));
  if (!busy) {
    at("working").hidden = true;
    return;
  }
  showSending(0);
  // Most answers are there before it would be read.
  state.busy = setTimeout(() => { at("working").hidden = false; }, 250);
}

function showSending(share) {
  const waiting = share === null || share >= 1;
  at("progress-label").textContent = waiting ? "The model is at work" : "Sending";
  if (waiting) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

// ---------------------------------------------------------------- showing

function take(file) {
  if (!file) return;
  state.file = file;
  URL.revokeObjectURL(state.url);
  state.url = URL.createObjectURL(file);
  const video = file.type.startsWith("video/");
  at("empty").hidden = true;
  at("unshown").hidden = true;
  at("video").hidden = !video;
  at("picture").hidden = video;
  at("picture").alt = video ? "" : `The picture that is asked about: ${file.name}`;
  // An empty src would be a request for the page itself.
  for (const [id, used] of [["video", video], ["picture", !video]]) {
    if (used) at(id).src = state.url;
    else at(id).removeAttribute("src");
  }
  at("file-name").textContent = `${file.name} · ${bytes(file.size)}`;
  clearOverlay();
  if (state.models.length) ask();
  else loadModels();
}

function bytes(count) {
  if (count < 1e3) return `${count} B`;
  return count < 1e6 ? `${Math.round(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function clearOverlay() {
  state.shown = {};
  state.size = null;
  at("canvas").hidden = true;
  at("drawing").hidden = true;
  at("drawn").removeAttribute("src");
  at("view").hidden = true;
  at("stage").classList.remove("covered");
}

function clearAnswer() {
  clearOverlay();
  at("cards").replaceChildren();
  at("request").hidden = true;
}

function showAnswer(reply) {
  clearOverlay();
  state.size = { width: reply.width, height: reply.height };
  const model = currentModel();
  const heads = headsOf(reply);
  // A model that was replaced meanwhile by one of another task is not listed yet.
  const about = (name) => taught.widen((name ? model?.heads[name] : model) ?? { labels: [], thresholds: null });
  const boxes = (name) => ({
    ...about(name),
    id: `threshold-${name}`,
    wide: model?.task === "detection",
    least: state.least[name] ?? null,
    onShow: (boxes, least) => showBoxes(name, boxes, least),
    onChoose: choose,
  });
  at("cards").replaceChildren(...heads.map(([name, answer]) => card(name, answer, boxes(name))));
  if (reply.drawn?.startsWith("data:image/")) showDrawn(reply);
  const found = heads.some(([, answer]) => answer.task === "detection");
  say(found ? at("canvas").getAttribute("aria-label") : `Answer: ${spoken(reply)}`);
}

function showDrawn(reply) {
  at("drawn").src = reply.drawn;
  at("drawn").alt = `Heatmap over the ${reply.answer.is_video ? "faces of the video" : "picture"}: where it looks forged.`;
  // Crops of a video are a long sheet: as wide as the stage, and scrolled.
  const long = Boolean(reply.answer.is_video);
  at("drawing").classList.toggle("long", long);
  at("drawing").tabIndex = long ? 0 : -1;
  at("view").hidden = false;
  at("view-drawn").checked = true;
  showView();
}

function showView() {
  const drawn = at("view-drawn").checked;
  at("drawing").hidden = !drawn;
  at("stage").classList.toggle("covered", drawn);
}

function showBoxes(name, boxes, least) {
  state.shown[name] = boxes;
  state.least[name] = least;
  at("canvas").hidden = false;
  const all = Object.values(state.shown).flat();
  const what = all.length ? `${all.length} boxes drawn over the picture: ${counted(all)}.` : "No box is drawn.";
  at("canvas").setAttribute("aria-label", `${what} They are listed under Answer.`);
  paint();
}

function choose(item) {
  state.chosen = item;
  paint();
}

function paint() {
  if (at("canvas").hidden || !state.size) return;
  const boxes = Object.values(state.shown).flat();
  drawBoxes(at("canvas"), boxes, state.size, boxes.includes(state.chosen) ? state.chosen : null);
}

function showRequest(reply, trip, path) {
  const times = { Open: reply.ms.open, Queue: reply.ms.queue, Compute: reply.ms.compute, "Server total": reply.ms.total, "Round trip": trip };
  const cells = Object.entries(times).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, milliseconds(value))));
  at("times").replaceChildren(...cells);
  at("request-id").textContent = reply.request_id;
  at("curl").textContent = curl(path);
  at("request").hidden = false;
}

function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  return `${value < 100 ? value.toFixed(1) : Math.round(value)}\u00a0ms`;
}

function curl(path) {
  // The variable, not the token: what is copied ends up in histories and messages.
  const token = state.token ? ' -H "Authorization: Bearer $VFM_TOKEN"' : "";
  const name = state.file.name.replace(/[\u0000-\u001f]/g, "_");
  // Within quotes of its own, for curl takes a comma or a semicolon as the end of the name.
  const field = /^[\w.-]+$/.test(name) ? `file=@${name}` : `file=@"${name.replace(/[\\"]/g, "\\$&")}"`;
  return `curl${token} -F ${quoted(field)} ${quoted(new URL(path, document.baseURI).href)}`;
}

function quoted(text) {
  if (/^[\w.@=-]+$/.test(text)) return text;
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// ---------------------------------------------------------------- trouble

function say(text) {
  at("status").textContent = text;
}

function clearTrouble() {
  clearInterval(state.timer);
  at("trouble").hidden = true;
  at("trouble").replaceChildren();
}

function showTrouble(trouble, again) {
  if (!(trouble instanceof Trouble)) throw trouble;
  if (trouble.code === "unauthorized") {
    askToken(trouble);
    return;
  }
  const parts = [make("h3", {}, trouble.plain)];
  if (trouble.message) parts.push(make("p", {}, trouble.message));
  if (trouble.id) parts.push(make("p", { className: "soft" }, `Request id: ${trouble.id}`));
  if (trouble.code === "queue_full" && state.retries < MOST_RETRIES) parts.push(waiting(trouble, again));
  else if (trouble.code === "unknown_model") parts.push(make("div", { className: "row" }, retryButton("Look for models", loadModels)));
  else if (trouble.passing) parts.push(make("div", { className: "row" }, retryButton("Try again", again)));
  at("trouble").replaceChildren(...parts);
  at("trouble").hidden = false;
}

function retryButton(text, again) {
  const button = make("button", { className: "button", type: "button" }, text);
  button.addEventListener("click", () => again());
  return button;
}

/** Try again by itself once the server's time is over. */
function waiting(trouble, again) {
  state.retries += 1;
  let left = Math.min(60, Math.max(1, Math.ceil(trouble.retryAfter || 1)));
  // The count is for the eye; read aloud once a second it would drown everything else.
  const count = make("span", { "aria-hidden": "true" }, `in ${left} s`);
  const stopIt = make("button", { className: "button quiet", type: "button" }, "Stop");
  stopIt.addEventListener("click", () => { clearTrouble(); say("Cancelled."); });
  state.timer = setInterval(() => {
    left -= 1;
    count.textContent = `in ${left} s`;
    if (left <= 0) again();
  }, 1000);
  return make("div", { className: "row" }, make("p", {}, "Trying again ", count), retryButton("Try now", again), stopIt);
}

function askToken(trouble) {
  const refused = Boolean(state.token);
  state.token = "";
  at("token-hint").textContent = refused
    ? `The server did not take that token. ${trouble.message}`
    : "Kept in this tab's memory only, and forgotten when it is closed or loaded anew.";
  at("token-form").hidden = false;
  at("token").value = "";
  at("token").focus();
}

function useToken(event) {
  event.preventDefault();
  const token = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    at("token-hint").textContent = "A token is made of letters, digits and signs, without spaces.";
    return;
  }
  state.token = token;
  at("token").value = "";
  loadModels();
}

// ----------------------------------------------------------------- wiring

async function copy(button) {
  const source = at(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  } catch {
    // Without HTTPS a browser has no clipboard for pages.
    window.getSelection().selectAllChildren(source);
    say("Selected: copy it with the keyboard.");
  }
}

function dropping(on) {
  at("stage").classList.toggle("over", on);
}

function wire() {
  at("file").addEventListener("change", () => { take(at("file").files[0]); at("file").value = ""; });
  // Space opens the chooser of a file field in every browser, Enter does not.
  at("file").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    at("file").click();
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); dropping(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropping(false); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  at("model").addEventListener("change", () => { state.least = {}; showModel(); if (state.file) ask(); });
  at("version").addEventListener("change", () => { if (state.file) ask(); });
  at("models").addEventListener("submit", (event) => event.preventDefault());
  at("token-form").addEventListener("submit", useToken);
  at("cancel").addEventListener("click", cancel);
  at("view").addEventListener("change", showView);
  // Of a few pixels, each is worth seeing.
  at("picture").addEventListener("load", () => at("picture").classList.toggle("tiny", at("picture").naturalWidth < 64));
  for (const id of ["picture", "video"]) {
    at(id).addEventListener("error", () => { at(id).hidden = true; at("unshown").hidden = false; });
  }
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  new ResizeObserver(paint).observe(at("stage"));
}

wire();
const version = () => (currentModel()?.versions.length > 1 ? at("version").value : "");
const again = () => { if (state.file) ask(); };
const taught = wireTaught({ model: currentModel, version, file: () => state.file, token: () => state.token, again });
loadModels();
