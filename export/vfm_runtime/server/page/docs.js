// The API page: routes, parameters, bodies, answers and errors, as openapi.json describes them.

import { make } from "./answers.js";
import { send } from "./network.js";

const VERBS = ["get", "post", "put", "patch", "delete"];
const MOST_DEPTH = 3;
const at = (id) => document.getElementById(id);
let description = {};

/** Follow a `$ref` within the description; what refers to nothing is empty. */
function resolved(part) {
  let found = part ?? {};
  for (let step = 0; found.$ref && step < 8; step += 1) {
    const keys = found.$ref.replace(/^#\//, "").split("/");
    found = keys.reduce((value, key) => value?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], description) ?? {};
  }
  return found;
}

/** A schema in a few words: `string`, `list of Box`, `one of a, b`. */
function typed(schema) {
  const part = resolved(schema);
  const choices = part.enum ?? (part.const === undefined ? null : [part.const]);
  if (choices) return choices.map((choice) => JSON.stringify(choice)).join(" | ");
  const options = part.anyOf ?? part.oneOf ?? part.allOf;
  if (options) return [...new Set(options.map(typed))].join(" or ");
  if (part.type === "array") return `list of ${typed(part.items)}`;
  if (part.format === "binary" || part.contentMediaType) return "file";
  if (part.type === "object" && part.title) return `object ${part.title}`;
  return [part.type].flat().filter(Boolean).join(" or ") || "anything";
}

function bounds(schema) {
  const part = resolved(schema);
  const words = { minimum: "at least", maximum: "at most", exclusiveMinimum: "above", exclusiveMaximum: "below", maxLength: "length at most", pattern: "like" };
  const limits = Object.entries(words).filter(([key]) => part[key] !== undefined).map(([key, word]) => `${word} ${part[key]}`);
  if (part.default !== undefined && part.default !== null) limits.push(`default ${JSON.stringify(part.default)}`);
  return limits.join(", ");
}

function table(heads, rows) {
  // A last column that says nothing is left out.
  if (rows.every((cells) => cells.at(-1).length === 0 || cells.at(-1)[0] === "")) {
    return table(heads.slice(0, -1), rows.map((cells) => cells.slice(0, -1)));
  }
  const head = make("thead", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name))));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, ...[cell].flat()))));
  // Scrolled with the keyboard too where it is wider than the screen.
  return make("div", { className: "table", tabIndex: 0, role: "group", "aria-label": heads.join(", ") },
    make("table", {}, head, make("tbody", {}, ...body)));
}

function code(text) {
  return make("code", {}, text);
}

/** Text whose `words in backticks` are code. */
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? code(part) : part));
}

function named(name, required) {
  return [code(name), required ? make("span", { className: "required" }, " required") : ""];
}

function described(part) {
  const limits = bounds(part.schema ?? part);
  const text = [part.description, limits && `${limits[0].toUpperCase()}${limits.slice(1)}.`].filter(Boolean).join(" ");
  return prose(text);
}

function parameterTable(parameters) {
  const rows = parameters.map(resolved).map((part) => [
    named(part.name, part.required), part.in, typed(part.schema), described(part),
  ]);
  return rows.length ? [make("h4", {}, "Parameters"), table(["Name", "In", "Type", "Meaning"], rows)] : [];
}

/** Rows for the fields of an object, and of the objects in it: `ms.open`, `inputs[].name`. */
function fieldRows(schema, prefix, marks, depth) {
  const part = resolved(schema);
  if (part.type === "array") return fieldRows(part.items, `${prefix}[]`, marks, depth);
  const needed = marks ? (part.required ?? []) : [];
  return Object.entries(part.properties ?? {}).flatMap(([name, field]) => {
    const path = prefix ? `${prefix}.${name}` : name;
    const row = [named(path, needed.includes(name)), typed(field), described({ ...resolved(field), ...field })];
    return [row, ...(depth > 1 ? fieldRows(field, path, marks, depth - 1) : [])];
  });
}

function fieldTable(schema, marks) {
  const rows = fieldRows(schema, "", marks, MOST_DEPTH);
  return rows.length ? table(["Field", "Type", "Meaning"], rows) : null;
}

function bodies(operation) {
  const body = resolved(operation.requestBody);
  const kinds = Object.entries(body.content ?? {});
  if (!kinds.length) return [];
  const parts = kinds.flatMap(([kind, { schema }]) => {
    const fields = fieldTable(schema, true);
    const words = [fields ? "" : typed(schema), resolved(schema).description ?? ""].filter(Boolean).join(". ");
    return [make("p", { className: "media" }, code(kind), " ", ...prose(words)), fields];
  });
  return [make("h4", {}, "Body"), body.description ? make("p", {}, ...prose(body.description)) : null, ...parts];
}

function statusTable(entries) {
  const rows = entries.map(([status, answer]) => {
    const kinds = Object.keys(answer.content ?? {}).join(", ");
    return [code(status), kinds, prose(answer.description ?? "")];
  });
  return table(["Status", "Type", "Meaning"], rows);
}

function answers(operation) {
  const all = Object.entries(operation.responses ?? {}).map(([status, answer]) => [status, resolved(answer)]);
  const good = all.filter(([status]) => status < "4");
  const bad = all.filter(([status]) => status >= "4");
  const parts = [make("h4", {}, "Answer")];
  for (const [status, answer] of good) {
    const kinds = Object.keys(answer.content ?? {});
    const [content] = Object.values(answer.content ?? {});
    parts.push(make("p", { className: "media" }, code(status), " ", ...prose(answer.description ?? ""), make("span", { className: "soft" }, ` ${kinds.join(", ")}`)));
    parts.push(content ? fieldTable(content.schema, false) : null);
  }
  // The same on every route, nearly: there for those who look for them.
  if (bad.length) {
    const statuses = bad.map(([status]) => status).join(", ");
    parts.push(make("details", {}, make("summary", {}, `Errors: ${statuses}`), statusTable(bad)));
  }
  return parts;
}

function idOf(verb, path) {
  return `${verb}${path.replace(/[^A-Za-z0-9]+/g, "-")}`;
}

/** A path that may be broken at its slashes. */
function pathOf(path) {
  return path.split(/(?<=.)(?=\/)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part]));
}

function verbOf(verb) {
  return make("span", { className: "verb" }, verb.toUpperCase());
}

function route({ verb, path, operation, shared }) {
  const parameters = [...(shared ?? []), ...(operation.parameters ?? [])];
  const text = operation.description ?? operation.summary;
  return make("section", { className: "route", id: idOf(verb, path) },
    make("h3", {}, verbOf(verb), make("span", {}, ...pathOf(path))),
    text ? make("p", {}, ...prose(text)) : null,
    operation.security?.length ? make("p", { className: "soft" }, "Needs a token where the server has one.") : null,
    ...parameterTable(parameters), ...bodies(operation), ...answers(operation));
}

function errorForm() {
  const schema = description.components?.schemas?.Error;
  if (!schema) return [];
  return [make("section", { className: "route", id: "errors" },
    make("h3", {}, "Errors"), make("p", {}, "Every error has the same form."), fieldTable(schema, false))];
}

/** Routes by their tag, in the order of the description. */
function grouped() {
  const groups = new Map();
  for (const [path, item] of Object.entries(description.paths ?? {})) {
    for (const verb of VERBS.filter((name) => item[name])) {
      const tag = item[verb].tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ verb, path, operation: item[verb], shared: item.parameters });
    }
  }
  return groups;
}

function show() {
  const { title, summary, version } = description.info ?? {};
  if (title) at("title").textContent = `API of ${title}`;
  if (summary) at("lede").prepend(...prose(`${summary} `));
  if (version) at("lede").append(` Version ${version}.`);
  for (const [tag, routes] of grouped()) {
    if (tag) at("contents").append(make("h2", {}, tag));
    for (const one of routes) {
      const href = `#${idOf(one.verb, one.path)}`;
      at("contents").append(make("a", { href }, verbOf(one.verb), make("span", {}, ...pathOf(one.path))));
      at("routes").append(route(one));
    }
  }
  at("routes").append(...errorForm());
  // The part that the address names was not there when the page was opened.
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function load() {
  try {
    description = await send("GET", "openapi.json");
  } catch (trouble) {
    at("trouble").append(make("h3", {}, trouble.plain ?? "The description cannot be read."), make("p", {}, trouble.message));
    at("trouble").hidden = false;
    return;
  }
  show();
}

load();
