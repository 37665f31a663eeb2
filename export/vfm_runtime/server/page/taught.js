// The panel of taught classes: teach by pictures or by boxes in them, forget, and why an answer is as it is.

import { barList, make, percent, SHOWN_FROM } from "./answers.js";
import { wireMarking } from "./marking.js";
import { send, Trouble } from "./network.js";

const at = (id) => document.getElementById(id);
const MOST_FILES = 32; // of one form, as the server takes them

/**
 * Wire the panel. It shows where the server has a state folder and the model gives embeddings.
 *
 * @param asked What is asked: `model()`, `version()`, `file()`, and `token()` of the page; `again()` asks once more.
 */
export function wireTaught(asked) {
  const panel = { token: "", classes: {}, threshold: null, teaching: false };
  const marking = wireMarking(() => at("taught-label").value.trim());
  const byBoxes = () => Boolean(asked.model()?.learns_boxes);

  function path(route, more = {}) {
    const names = { model: asked.model()?.name, version: asked.version(), ...more };
    const used = Object.entries(names).filter(([, value]) => value);
    return `${route}?${new URLSearchParams(used)}`;
  }

  /** List what the chosen model was taught; the panel stays away where nothing can be. */
  async function show() {
    at("taught").hidden = !asked.model()?.learns;
    marking.close();
    if (at("taught").hidden) return;
    at("taught-how").textContent = byBoxes()
      ? "Name a class, drop a picture here, and draw a box around every object of the class. It counts at once, for everyone who asks this server."
      : "Name a class, and drop a few pictures of it here. It counts at once, for everyone who asks this server.";
    at("taught-choose").textContent = byBoxes() ? "Choose a picture" : "Choose pictures";
    at("taught-drop").textContent = byBoxes() ? "Drop a picture here to draw on" : "Drop pictures of the class here";
    at("taught-files").multiple = !byBoxes();
    try {
      list(await send("GET", path("taught"), { token: asked.token() }));
    } catch (trouble) {
      explain(trouble);
    }
  }

  function list({ classes, state_version: version, threshold }) {
    Object.assign(panel, { classes, threshold });
    const names = Object.keys(classes);
    at("taught-names").replaceChildren(...names.map((name) => make("option", { value: name })));
    at("taught-list").replaceChildren(...names.map((name) => {
      const button = make("button", { className: "button quiet", type: "button" }, "Forget", make("span", { className: "unseen" }, ` ${name}`));
      button.addEventListener("click", () => change(path("forget", { label: name }), null, `Forgot ${name}.`));
      const count = `${classes[name]} ${classes[name] === 1 ? "example" : "examples"}`;
      return make("li", {}, make("span", { className: "name" }, name), make("span", { className: "soft number" }, count), button);
    }));
    at("taught-about").textContent = names.length
      ? `Version ${version} of what it was taught.` + (names.length < 2 && !byBoxes() ? " It needs a second class to choose." : "")
      : "Nothing was taught yet.";
  }

  async function change(route, body, done) {
    if (panel.teaching) return;
    panel.teaching = true;
    tell("One moment …");
    try {
      list(await send("POST", route, { token: panel.token || asked.token(), body }));
      tell(done);
      if (byBoxes()) {
        marking.close();
        asked.again();
      } else {
        await ask();
      }
    } catch (trouble) {
      explain(trouble);
    } finally {
      panel.teaching = false;
    }
  }

  function teach(files) {
    const label = at("taught-label").value.trim();
    const pictures = [...files];
    if (!pictures.length) return;
    if (byBoxes()) {
      tell(pictures.length > 1 ? "One picture at a time: this is the first." : "");
      marking.open(pictures[0]);
      return;
    }
    if (!isNamed(label)) return;
    if (pictures.length > MOST_FILES) {
      tell(`${pictures.length} pictures at once; ${MOST_FILES} is the most. Drop fewer.`);
      return;
    }
    const body = new FormData();
    for (const picture of pictures) body.append("file", picture);
    change(path("teach", { label }), body, `Learned ${pictures.length} of ${label}.`);
  }

  function teachBoxes() {
    const label = at("taught-label").value.trim();
    const { file, boxes } = marking.marked();
    if (!isNamed(label)) return;
    if (!boxes.length) {
      tell("Draw a box around every object of the class first.");
      return;
    }
    const body = new FormData();
    body.append("file", file);
    change(path("teach", { label, boxes: JSON.stringify([boxes]) }), body, `Learned ${label} from ${file.name}.`);
  }

  /** What a detector answers with: its own classes, then those that it was taught. */
  function widen(head) {
    const names = Object.keys(panel.classes);
    if (!byBoxes() || !names.length) return head;
    const before = head.thresholds ?? head.labels.map(() => SHOWN_FROM);
    return { ...head, labels: [...head.labels, ...names], thresholds: [...before, ...names.map(() => panel.threshold)] };
  }

  /** Show the answer of the taught classes for the file of the page, beside that of the bundle. */
  async function ask() {
    document.querySelector(".card.taught")?.remove();
    const file = asked.file();
    if (at("taught").hidden || !file || file.type.startsWith("video/") || Object.keys(panel.classes).length < (byBoxes() ? 1 : 2)) return;
    const body = new FormData();
    body.append("file", file);
    try {
      const answer = await answerWith(body);
      document.querySelector(".card.taught")?.remove();
      if (asked.file() !== file) return;
      if (answer.boxes) at("cards").append(...boxCards(answer));
      else at("cards").prepend(card(answer));
    } catch (trouble) {
      explain(trouble);
    }
  }

  /** Answer by the taught classes with the nearest examples, which are shown to those who may teach alone. */
  async function answerWith(body) {
    try {
      return await send("POST", path("why", { nearest: 4 }), { token: panel.token || asked.token(), body });
    } catch (trouble) {
      if (trouble.code !== "unauthorized") throw trouble;
      explain(trouble);
      // A detector's answer has the boxes of taught classes already.
      return byBoxes() ? { boxes: [] } : send("POST", path("classify"), { token: asked.token(), body });
    }
  }

  function explain(trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    const isRefused = trouble.code === "unauthorized";
    tell(isRefused ? "To teach, to forget and to see the nearest examples takes a token of its own." : trouble.message || trouble.plain);
    if (!isRefused) return;
    panel.token = "";
    at("taught-token-field").hidden = false;
  }

  function over(on) {
    at("taught-drop").classList.toggle("over", on);
  }

  at("taught-form").addEventListener("submit", (event) => {
    event.preventDefault();
    at("taught-files").click();
  });
  at("taught-files").addEventListener("change", () => { teach(at("taught-files").files); at("taught-files").value = ""; });
  at("marks-teach").addEventListener("click", teachBoxes);
  at("taught-label").addEventListener("input", marking.paint);
  at("taught-token").addEventListener("change", () => { panel.token = at("taught-token").value.trim(); tell("The token is used from now on."); ask(); });
  // What is dropped here is an example, not a question.
  for (const kind of ["dragover", "dragleave", "drop"]) {
    at("taught").addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      over(kind === "dragover");
      if (kind === "drop") teach(event.dataTransfer.files);
    });
  }
  return { show, ask, widen };
}

function tell(text) {
  at("taught-status").textContent = text;
}

function isNamed(label) {
  if (label) return true;
  tell("Name the class first.");
  at("taught-label").focus();
  return false;
}

function nearestList(nearest) {
  const rows = nearest.map(({ label, name, similarity, picture }) => make("li", {},
    // Only what the server itself encodes: nothing is loaded from elsewhere.
    picture?.startsWith("data:image/jpeg;base64,") ? make("img", { src: picture, alt: `Example of ${label}` }) : null,
    make("span", { className: "name" }, label, make("span", { className: "place" }, ` ${name}`)),
    make("span", { className: "number" }, similarity.toFixed(2))));
  return make("ol", { className: "nearest" }, ...rows);
}

/** The examples that the boxes of taught classes rest on; nothing where there is no such box. */
function boxCards({ boxes }) {
  const taught = boxes.filter(({ nearest }) => nearest.length);
  if (!taught.length) return [];
  const parts = taught.map(({ label, score, nearest }) => make("div", {},
    make("p", { className: "found-class" }, make("span", { className: "name" }, label), ` ${percent(score)}`),
    nearestList(nearest)));
  return [make("article", { className: "card taught" }, make("h3", { className: "kind" }, "Taught class · nearest examples"), ...parts)];
}

function card(answer) {
  return make("article", { className: "card taught" },
    make("h3", { className: "kind" }, "Taught class"),
    make("p", { className: "headline" }, answer.label),
    make("p", { className: "soft" }, `Score ${percent(answer.score)}`),
    barList(answer.top),
    ...(answer.nearest.length ? [make("h4", {}, "Nearest examples"), nearestList(answer.nearest)] : []));
}
