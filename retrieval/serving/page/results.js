// Searching, and the pictures that were found.

import { $, ask, complain, counted, distanceTexts, element, imageAddress, itemAddress, sharpen } from "./dom.js";
import { isEmpty, parsedWords, query } from "./query.js";
import { current, filter, settings } from "./settings.js";

const NOTHING_ASKED = "Search by words, by pictures, or by both. Or choose a picture of the collection.";
const NO_PICTURE = "Search by a picture: drop, paste or choose one. Or choose one of the collection.";

export const shown = { hits: [], distances: [], items: [] };

let running = null; // the AbortController of the last search
let seed = 0;
let drawn = 0; // number of the last sample that was asked for

// Search for the query. Answers to earlier queries are dropped. found: is called with the hits.
export async function search(found) {
  running?.abort();
  if (isEmpty(current().words !== false)) {
    running = null;
    document.body.classList.remove("busy");
    complain(null);
    showNothing();
    found();
    return;
  }
  const own = running = new AbortController();
  document.body.classList.add("busy");
  try {
    const answer = await asked(own.signal);
    if (own !== running) return; // a later search has begun
    complain(null);
    showAnswer(answer);
    found();
  } catch (error) {
    if (own === running) complain(error);
  } finally {
    if (own === running) document.body.classList.remove("busy");
  }
}

// Ask the service for the query's answer. For one row alone, the answer has the row's label.
function asked(signal) {
  const { texts, excluded } = parsedWords(current().words === false ? "" : query.words);
  const { pictures, like, unlike } = query;
  if (like.length === 1 && !(pictures.length + unlike.length + texts.length + excluded.length)) {
    return ask(`${itemAddress(like[0], "neighbors")}?${new URLSearchParams(settings())}`, { signal });
  }
  const form = new FormData();
  pictures.forEach(({ file }) => form.append("image", file, file.name || "pasted"));
  texts.forEach((text) => form.append("text", text));
  excluded.forEach((text) => form.append("not", text));
  like.forEach((id) => form.append("like", id));
  unlike.forEach((id) => form.append("unlike", id));
  const words = Number($("balance").value);
  if (!$("balance-field").hidden && words !== 0.5) {
    form.append("weight_images", 2 * (1 - words));
    form.append("weight_text", 2 * words);
  }
  Object.entries(settings()).forEach(([name, value]) => form.append(name, value));
  return ask("/api/search", { method: "POST", body: form, signal });
}

function showNothing() {
  Object.assign(shown, { hits: [], distances: [] });
  $("answer").hidden = true;
  $("nothing").hidden = false;
  $("nothing").textContent = current().words === false ? NO_PICTURE : NOTHING_ASKED;
  $("count").textContent = "";
  $("hits").replaceChildren();
}

function showAnswer({ hits, label, milliseconds, notes }) {
  shown.hits = hits;
  shown.distances = distanceTexts(hits.map((hit) => hit.distance));
  const isKnown = label !== null;
  const right = hits.filter((hit) => hit.label === label).length;
  $("answer").hidden = false;
  $("count").textContent = `${counted(hits.length, "image")} found` +
    (isKnown && hits.length ? `, ${right} with the label ${label}` : "");
  const encode = milliseconds.encode ? ` · encoding ${milliseconds.encode.toFixed(0)} ms` : "";
  $("time").textContent = `search ${milliseconds.search.toFixed(2)} ms${encode}`;
  $("notes").hidden = !notes;
  $("notes").replaceChildren(...(notes ?? []).map((textContent) => element("li", { textContent })));
  $("nothing").hidden = hits.length > 0;
  $("nothing").textContent = "No image matches. Change the query or the filter.";
  const before = new Map([...$("hits").children].map((card) => [card.dataset.id, card.querySelector("img")]));
  $("hits").replaceChildren(...hits.map((hit, i) => {
    const verdict = !isKnown ? "" : hit.label === label ? "right" : "wrong";
    return card(hit, 256, before.get(hit.id), verdict, shown.distances[i]);
  }));
}

// Return the card of a hit or an item.
function card({ id, label, rank }, size, image, verdict = "", distance = "") {
  const name = label ?? id;
  const found = rank ? [`rank ${rank}`, `distance ${distance}`] : [];
  const open = element("button", { type: "button", className: "open", title: id },
    image ?? sharpen(element("img", { alt: "", loading: "lazy", src: imageAddress(current(), id, size) })));
  open.setAttribute("aria-label", ["Open " + name, ...(label === null ? [] : [id]), ...found,
    ...(verdict ? [`${verdict} label`] : [])].join(", "));
  const mark = { "": "", right: "✓ ", wrong: "✗ " }[verdict];
  return element("li", { className: `card ${verdict}`, dataset: { id } }, open,
    element("div", { className: "caption" },
      element("span", { className: "what" }, ...(mark ? [element("b", { className: "mark", textContent: mark })] : []), name),
      ...(distance ? [element("span", { className: "far", textContent: distance })] : [])),
    element("div", { className: "lean" }, leanButton(id, "like"), leanButton(id, "unlike")));
}

function leanButton(id, side) {
  const words = side === "like" ? "More like this" : "Less like this";
  const button = element("button", {
    type: "button", className: `round ${side}`, title: words, textContent: side === "like" ? "+" : "−",
  });
  button.dataset.side = side;
  button.setAttribute("aria-label", `${words}: ${id}`);
  return button;
}

// Show a sample of the collection. others: another one than before.
export async function showItems(others = false) {
  if (others) seed += 1;
  const wanted = new URLSearchParams({ index: current().name, limit: 24, seed });
  if (filter()) wanted.set("where", filter());
  const turn = ++drawn;
  try {
    const { items } = await ask(`/api/items?${wanted}`);
    if (turn !== drawn) return; // others are wanted by now
    shown.items = items;
    $("items").replaceChildren(...items.map((item) => card(item, 128)));
  } catch (error) {
    if (turn === drawn) complain(error);
  }
}
