// The large view of a picture, with what is known about it.

import { $, ask, element, imageAddress, itemAddress, sharpen } from "./dom.js";
import { current } from "./settings.js";

const LARGE = 1024; // pixels of the longer side, the most that the service sends

let row = []; // the pictures that the arrow keys walk: hits or items
let texts = []; // their distances
let at = 0;

// Open the picture at this position of a row of hits or items. distances: their texts.
export function openViewer(pictures, position, distances = []) {
  [row, texts] = [pictures, distances];
  if (!$("viewer").open) $("viewer").showModal();
  show(position);
}

function show(position) {
  at = position;
  const picture = row[at];
  const index = current();
  $("viewer-title").textContent = picture.label ?? picture.id;
  $("viewer-place").textContent = `${at + 1} of ${row.length}`;
  $("previous").disabled = at === 0;
  $("next").disabled = at === row.length - 1;
  const image = sharpen($("viewer-image"));
  image.alt = picture.label === null ? picture.id : `${picture.label}: ${picture.id}`;
  image.src = imageAddress(index, picture.id); // the browser has it
  const large = new Image();
  large.onload = () => { if (row[at] === picture) image.src = large.src; };
  large.src = imageAddress(index, picture.id, LARGE);
  $("about").scrollTop = 0;
  showFacts(picture, {});
  ask(`${itemAddress(picture.id)}?${new URLSearchParams({ index: index.name })}`)
    .then(({ columns }) => { if (row[at] === picture) showFacts(picture, columns); })
    .catch(() => {}); // what is shown already stays
}

function showFacts({ id, label, path, rank, distance }, columns) {
  const facts = Object.entries({
    label, id, path, rank, distance: distance === undefined ? undefined : texts[at] ?? distance,
  }).concat(Object.entries(columns).map(([name, value]) => [name, readable(name, value)]));
  $("facts").replaceChildren(...facts
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => element("div", {},
      element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

// Return the value of a column as people read it.
function readable(name, value) {
  if (name === "bytes" && Number.isFinite(value)) {
    return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
  }
  const time = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(\+00:00)?$/.exec(value);
  return time ? `${time[1]} ${time[2]}${time[3] ? " UTC" : ""}` : value;
}

const step = (by) => { if (row[at + by]) show(at + by); };

// Watch the dialog. ask: {more, less, alone}, called with an id. closed: called with the id that was
// shown last.
export function watchViewer(asks, closed) {
  const viewer = $("viewer");
  for (const [name, act] of Object.entries(asks)) {
    $(name).onclick = () => {
      const { id } = row[at];
      row = []; // a search follows, which replaces the cards
      viewer.close();
      act(id);
    };
  }
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("close").onclick = () => viewer.close();
  viewer.onclick = (event) => { if (event.target === viewer) viewer.close(); };
  viewer.onclose = () => { if (row[at]) closed(row[at].id); };
  viewer.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(by);
  };
}
