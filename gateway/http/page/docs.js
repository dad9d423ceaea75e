// Shows the OpenAPI document of this server. Everything is put in as text, never as HTML: no comment can be markup.

import { element } from "./element.js";

const NO_NUL = "^[^\\u0000]*$"; // on nearly every string, and said once in the introduction

const main = document.getElementById("main");
try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json was answered ${answer.status}`);
  show(await answer.json());
} catch (error) {
  main.replaceChildren(element("p", { class: "failed" }, `The document could not be loaded: ${error.message}`));
}

function show(api) {
  document.getElementById("version").textContent = api.info.version;
  const contents = document.getElementById("contents");
  main.replaceChildren(...prose(api.info.description));
  for (const tag of api.tags) {
    const found = operations(api, tag.name);
    if (!found.length) continue;
    contents.append(element("h2", {}, tag.name), element("ul", {}, ...found.map(entry)));
    const about = element("details", {}, element("summary", {}, "About"), ...prose(tag.description));
    main.append(element("section", { "aria-label": tag.name },
      element("h2", {}, tag.name), about, ...found.map((one) => article(api, one))));
  }
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value.toLowerCase()));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function operations(api, tag) {
  return Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item)
      .filter(([, operation]) => operation.tags.includes(tag))
      .map(([verb, operation]) => ({ path, verb, operation })));
}

function filter(text) {
  for (const node of document.querySelectorAll("nav li, article")) {
    node.hidden = !node.dataset.words.includes(text);
  }
}

function words({ path, verb, operation }) {
  return `${verb} ${path} ${operation.operationId} ${operation.summary}`.toLowerCase();
}

function entry(one) {
  return element("li", { "data-words": words(one) },
    element("a", { href: `#${one.operation.operationId}` }, verb(one.verb), one.operation.operationId));
}

function verb(name) {
  return element("span", { class: `verb ${name}` }, name);
}

function article(api, one) {
  const { path, operation } = one;
  const parts = [
    element("h3", {}, verb(one.verb), element("span", { class: "path" }, path)),
    ...prose(operation.description ?? operation.summary),
    element("pre", {}, element("code", {}, curl(api, one))),
  ];
  const parameters = operation.parameters.map((parameter) => resolved(api, parameter));
  if (parameters.length) parts.push(element("h4", {}, "Parameters"), rows(parameters.map((p) => row(api, p.name, p.schema,
    { required: p.required, place: p.in, text: p.description }))));
  const body = operation.requestBody?.content;
  if (body) parts.push(element("h4", {}, "Body"), ...media(api, body));
  parts.push(element("h4", {}, "Answers"), rows(Object.entries(operation.responses).map(([status, answer]) =>
    element("div", {}, element("dt", {}, element("span", { class: "name" }, status)),
      element("dd", {}, ...prose(answer.description), ...media(api, answer.content ?? {}))))));
  return element("article", { id: operation.operationId, "data-words": words(one) }, ...parts);
}

function curl(api, { path, verb: name, operation }) {
  const lines = [`curl${name === "get" ? "" : ` -X ${name.toUpperCase()}`} "$TUNESMITH_URL${path}"`];
  if (operation.security.length) lines.push(`-H "Authorization: Bearer $TUNESMITH_KEY"`);
  const schema = operation.requestBody?.content["application/json"]?.schema;
  if (schema && operation.requestBody.required) {
    lines.push(`-H "Content-Type: application/json"`, `-d '${JSON.stringify(example(api, schema), null, 2)}'`);
  }
  return lines.join(" \\\n  ");
}

// The least that the schema asks for.
function example(api, schema) {
  schema = resolved(api, schema);
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  if (schema.oneOf ?? schema.anyOf) return example(api, (schema.oneOf ?? schema.anyOf)[0]);
  const type = [schema.type].flat()[0];
  if (type === "object") {
    const wanted = schema.required ?? [];
    return Object.fromEntries(wanted.map((key) => [key, example(api, schema.properties[key])]));
  }
  if (type === "array") return Array(schema.minItems ?? 0).fill(example(api, schema.items));
  if (type === "integer" || type === "number") return Math.max(schema.minimum ?? 0, 0);
  return type === "boolean" ? true : "…";
}

function media(api, content) {
  return Object.entries(content).filter(([, one]) => one.schema).map(([type, one]) => {
    const schema = one["x-event-schema"] ?? one["x-line-schema"] ?? one.schema;
    return fold(`${type}: ${typeOf(schema)}`, () => shape(api, schema));
  });
}

// Built when it is opened: schemas may contain themselves, and most are never looked at.
function fold(title, make) {
  const details = element("details", {}, element("summary", {}, title));
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(...make()), { once: true });
  return details;
}

function shape(api, reference) {
  const schema = resolved(api, reference);
  const parts = reference.$ref ? prose(schema.description) : [];
  for (const arm of schema.oneOf ?? schema.anyOf ?? []) {
    if (arm.$ref) parts.push(fold(typeOf(arm), () => shape(api, arm)));
  }
  const keys = Object.entries(schema.properties ?? {});
  if (keys.length) parts.push(rows(keys.map(([name, property]) =>
    row(api, name, property, { required: schema.required?.includes(name), text: property.description }))));
  if (schema.items) parts.push(...shape(api, schema.items));
  return parts;
}

function rows(children) {
  return element("dl", {}, ...children);
}

function row(api, name, schema, { required, place, text }) {
  const head = element("dt", {}, element("span", { class: "name" }, name),
    element("span", { class: "type" }, [place, typeOf(schema), ...limits(schema)].filter(Boolean).join(" · ")));
  if (required) head.append(element("span", { class: "must" }, "required"));
  const inner = inside(schema);
  return element("div", {}, head,
    element("dd", {}, ...prose(text), ...(inner ? [fold(typeOf(inner), () => shape(api, inner))] : [])));
}

// What there is to unfold below a value: a component, itself or as element or alternative.
function inside(schema) {
  if (schema.$ref) return schema;
  return schema.items ? inside(schema.items) : (schema.anyOf ?? schema.oneOf ?? []).map(inside).find(Boolean);
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.anyOf ?? schema.oneOf) return (schema.anyOf ?? schema.oneOf).map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  const names = [schema.type ?? "any"].flat().map((type) => (type === "array" ? `${typeOf(schema.items ?? {})}[]` : type));
  return names.join(" or ") + (schema.format === "date-time" ? " (date-time)" : "");
}

function limits(schema) {
  const said = [];
  const from = schema.exclusiveMinimum ?? schema.minimum, to = schema.exclusiveMaximum ?? schema.maximum;
  if (from > -(2 ** 31)) said.push(`${"exclusiveMinimum" in schema ? ">" : "≥"} ${from}`);
  if (to < 2 ** 31 - 1 || to === 2 ** 32 - 1) said.push(`${"exclusiveMaximum" in schema ? "<" : "≤"} ${to}`);
  if ("maxLength" in schema) said.push(`${schema.minLength ?? 0} to ${schema.maxLength} characters`);
  if ("maxItems" in schema) said.push(`${schema.minItems ?? 0} to ${schema.maxItems} elements`);
  if ("maxProperties" in schema) said.push(`at most ${schema.maxProperties} keys`);
  if (schema.pattern && schema.pattern !== NO_NUL) said.push(`matches ${schema.pattern}`);
  return [...said, ...(schema["x-rules"] ?? [])];
}

function resolved(api, schema) {
  if (!schema.$ref) return schema;
  return resolved(api, schema.$ref.slice(2).split("/").reduce((inner, key) => inner[key], api));
}

// Paragraphs, lists of "- " and "1. ", and `code`; nothing more of Markdown.
function prose(text) {
  return (text ?? "").trim().split("\n\n").filter(Boolean).map((paragraph) => {
    const lines = paragraph.split(/\n(?=- |\d+\. )/);
    if (!/^(- |\d+\. )/.test(lines[0])) return element("p", {}, ...inline(paragraph));
    return element(lines[0].startsWith("-") ? "ul" : "ol", {},
      ...lines.map((line) => element("li", {}, ...inline(line.replace(/^(- |\d+\. )/, "")))));
  });
}

function inline(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}
