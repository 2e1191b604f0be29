// The index that is searched, its filters, and the number of images.

import { $, ask, complain, counted, fillSelect } from "./dom.js";
import { condition, conditionsFor, showValueInput } from "./conditions.js";

const WORDS_ENCODER = "clip:ViT-B-32-256"; // an encoder that takes words
const READY_MILLISECONDS = 1000; // between questions whether the encoders are open

let indices = [];
let isReady = false; // the encoders are open, or were found not to open

export const current = () => indices.find((each) => each.name === $("index").value);

function showIndices(name) {
  const metric = $("metric").value;
  const fitting = indices.filter((each) => !metric || each.metric === metric);
  const texts = fitting.map((each) => `${each.backend} · ${counted(each.rows, "image")}`);
  const isUnique = new Set(texts).size === texts.length;
  fillSelect($("index"), fitting.map((each, i) =>
    [each.name, isUnique ? texts[i] : `${each.name} · ${texts[i]}`]), name);
  showSettings();
}

function showSettings() {
  const index = current();
  $("index").title = index.name;
  $("size").textContent = `${counted(index.rows, "image")} · ${index.backend} · ${index.metric.replace("_", " ")}`;
  fillSelect($("label"), [["", "any"], ...index.labels.map((each) => [each, each])], $("label").value);
  $("label").parentElement.hidden = index.labels.length === 0;
  $("k").max = Math.min(200, index.rows);
  showEffort(index.effort);
  showColumns();
  showWordsHelp();
}

function showEffort(effort) {
  $("effort-field").hidden = !effort;
  if (!effort) return;
  $("effort-name").textContent = effort.option;
  $("effort").max = effort.values.length - 1;
  $("effort").value = effort.values.indexOf(effort.current);
  showEffortValue();
}

function showEffortValue() {
  const { option, values } = current().effort;
  const value = values[$("effort").value];
  $("effort-value").textContent = value;
  $("effort").setAttribute("aria-valuetext", `${option} ${value}`);
}

function showWordsHelp() {
  const { words, encoder } = current();
  $("words").disabled = words === false;
  $("words").placeholder = words === false ? "Pictures only" : "a dog on the beach -people";
  $("words-help").textContent = words === false
    ? `The encoder ${encoder} of this index takes no words. Search by picture, or encode the images ` +
      `with ${WORDS_ENCODER}, which takes words.`
    : `${words === null && !isReady ? "The encoder is opening. " : ""}Type words; a minus excludes, as in -people ` +
      `or -"red cars". Add pictures by dropping or pasting them.`;
  $("words-help").classList.toggle("told", words === false);
}

// Conditions of the filter

// Return the columns that a condition can compare; the label has its own list.
const columns = () => [
  { name: "id", type: "text" }, { name: "path", type: "text" }, ...current().columns,
];

function showColumns() {
  fillSelect($("column"), columns().map(({ name, type }) => [name, `${name} (${type})`]),
    $("column").value || current().columns[0]?.name);
  $("where").placeholder = current().columns.some(({ name }) => name === "width")
    ? "width > 1000" : "id like '%1%'";
  showComparisons();
}

function column() {
  return columns().find(({ name }) => name === $("column").value) ?? columns()[0];
}

function showComparisons() {
  fillSelect($("comparison"), conditionsFor(column().type), $("comparison").value);
  showValueInput($("value-field"), $("value-place"), column().type, $("comparison").value);
}

function addCondition() {
  const input = $("value-place").firstElementChild;
  const added = condition(column(), $("comparison").value, input?.value ?? "");
  if (!added) {
    input.focus();
    return false;
  }
  const before = $("where").value.trim();
  const isChoice = /\bor\b/i.test(before) && !/^\([^()]*\)$/.test(before);
  $("where").value = before ? `${isChoice ? `(${before})` : before} and ${added}` : added;
  if (input) input.value = "";
  return true;
}

// Return the filter of the label and the field; undefined for all images.
export function filter() {
  const label = $("label").value, where = $("where").value.trim();
  if (!label) return where || undefined;
  return where ? `label = '${label.replaceAll("'", "''")}' and (${where})` : `label=${label}`;
}

// Return the settings of a search, as fields of the service.
export function settings() {
  const index = current();
  const most = Number($("k").max);
  const k = Math.min(most, Math.max(1, Math.trunc(Number($("k").value)) || 1));
  const chosen = { index: index.name, k };
  if (filter()) chosen.where = filter();
  if (index.effort) chosen.effort = index.effort.values[$("effort").value];
  return chosen;
}

// Start

// Ask for the indices, and watch the settings. changed: {index, filter, search}, called after a
// change of the index, of the filter, and of what else decides the results.
export async function openSettings(changed) {
  watchSettings(changed);
  indices = (await ask("/api/indices")).indices;
  const metrics = [...new Set(indices.map((each) => each.metric))];
  fillSelect($("metric"), [
    ...(metrics.length > 1 ? [["", "any"]] : []), ...metrics.map((each) => [each, each.replace("_", " ")]),
  ]);
  $("metric-field").hidden = metrics.length < 2;
  $("index-field").hidden = indices.length < 2;
  showIndices();
  if (indices.some((each) => each.words === null)) awaitEncoders(changed);
}

// Ask for the indices again when the encoders are open: then it is known which take words.
async function awaitEncoders(changed) {
  try {
    while (!(await ask("/healthz")).ready) {
      await new Promise((resolve) => { setTimeout(resolve, READY_MILLISECONDS); });
    }
    isReady = true;
    const name = current().name, before = current().words;
    indices = (await ask("/api/indices")).indices;
    showWordsHelp();
    if (current().name === name && current().words !== before) changed.words();
  } catch (error) {
    complain(error);
  }
}

function watchSettings(changed) {
  let later;
  $("settings").onsubmit = (event) => event.preventDefault();
  $("metric").onchange = () => { showIndices(); changed.index(); };
  $("index").onchange = () => { showSettings(); changed.index(); };
  $("k").onchange = changed.search;
  $("label").onchange = changed.filter;
  $("where").onchange = changed.filter;
  $("effort").oninput = () => {
    showEffortValue();
    clearTimeout(later);
    later = setTimeout(changed.search, 60);
  };
  $("column").onchange = showComparisons;
  $("comparison").onchange = showComparisons;
  const add = () => { if (addCondition()) changed.filter(); };
  $("add-condition").onclick = add;
  $("value-place").onkeydown = (event) => {
    if (event.key === "Enter") { event.preventDefault(); add(); }
  };
  $("build").onclick = () => {
    const isOpen = $("builder").hidden;
    $("builder").hidden = !isOpen;
    $("build").setAttribute("aria-expanded", isOpen);
    if (isOpen) $("column").focus();
  };
  $("show-settings").onclick = () => {
    const isOpen = $("settings").classList.toggle("open");
    $("show-settings").setAttribute("aria-expanded", isOpen);
  };
}
