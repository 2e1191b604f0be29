"use strict";
// The page of `retr serve`. What is asked for is either a file or one of the collection's own
// images, whose id stands behind the # of the address, so that going back goes back.

const $ = (id) => document.getElementById(id);
const COLOURS = [
  "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
  "#9c6b4e", "#9498a0",
];
const PIXELS = 64; // images up to this side are shown with their pixels
const NEAR = 14; // pixels around a click in which a point is meant
const state = {
  indices: [], file: null, last: null, item: null, seed: 0, asked: 0, shown: 0, map: null, hits: [],
};

const itemAddress = (id, what) =>
  `/api/items/${id.split("/").map(encodeURIComponent).join("/")}/${what}`;
const current = () => state.indices.find((each) => each.name === $("index").value);
const imageAddress = (id, size = 256) =>
  `${itemAddress(id, "image")}?${new URLSearchParams({ index: current().name, size, v: current().version })}`;

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("the service does not answer; is 'retr serve' still running?");
  }
  const told = await response.json().catch(() => ({ error: `the service answered ${response.status}` }));
  if (!response.ok) throw new Error(told.error);
  return told;
}

function complain(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

// The distances as text, with as many digits as tell different ones apart; 9 do for float32.
function far(distances) {
  const different = new Set(distances).size;
  for (let digits = 3; ; digits++) {
    const texts = distances.map((distance) => `${Number(distance.toPrecision(digits))}`);
    if (digits === 9 || new Set(texts).size === different) return texts;
  }
}

function element(name, attributes, ...inside) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...inside);
  return made;
}

function picture(id, size) {
  const image = element("img", { alt: "", loading: "lazy", src: imageAddress(id, size) });
  image.onload = () => image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= PIXELS);
  return image;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text })));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
}

// The settings

function showIndices(name) {
  const metric = $("metric").value;
  const fitting = state.indices.filter((each) => !metric || each.metric === metric);
  options($("index"), fitting.map((each) => [each.name, `${each.backend} · ${each.rows.toLocaleString()} images`]), name);
  $("index").title = current().name;
  showSettings();
}

function showSettings() {
  const index = current();
  options($("label"), [["", "any"], ...index.labels.map((each) => [each, each])], $("label").value);
  $("label").parentElement.hidden = index.labels.length === 0;
  $("k").max = Math.min(200, index.rows);
  const effort = index.effort;
  $("effort-field").hidden = !effort;
  if (effort) {
    $("effort-name").textContent = effort.option;
    $("effort").max = effort.values.length - 1;
    $("effort").value = effort.values.indexOf(effort.current);
    $("effort").setAttribute("aria-valuetext", `${effort.option} ${effort.current}`);
    $("effort-value").textContent = effort.current;
  }
}

function chosen() {
  const index = current();
  const most = Number($("k").max);
  const k = Math.min(most, Math.max(1, Math.trunc(Number($("k").value)) || 1));
  const settings = { index: index.name, k };
  if ($("label").value) settings.where = `label=${$("label").value}`;
  if (index.effort) settings.effort = index.effort.values[$("effort").value];
  return settings;
}

// Searching

async function search() {
  if (!state.file && !state.item) return;
  const turn = ++state.asked;
  document.body.classList.add("busy");
  try {
    let answer;
    if (state.file) {
      const form = new FormData();
      form.append("image", state.file, state.file.name || "pasted");
      Object.entries(chosen()).forEach(([name, value]) => form.append(name, value));
      answer = await ask("/api/search", { method: "POST", body: form });
    } else {
      answer = await ask(`${itemAddress(state.item, "neighbors")}?${new URLSearchParams(chosen())}`);
    }
    if (turn !== state.asked) return; // a later question has been asked
    complain(null);
    showAnswer(answer);
  } catch (error) {
    if (turn === state.asked) complain(error);
  } finally {
    if (turn === state.asked) document.body.classList.remove("busy");
  }
}

function showAnswer(answer) {
  state.hits = answer.hits;
  const known = answer.label !== null;
  const right = answer.hits.filter((hit) => hit.label === answer.label).length;
  $("asked").replaceChildren(
    ...(known ? [element("strong", { textContent: answer.label }), " · "] : []),
    state.file ? state.file.name || "pasted image" : state.item,
  );
  $("heading").textContent = known
    ? `Neighbours: ${right} of ${answer.hits.length} right` : "Neighbours";
  const { encode, search: searched } = answer.milliseconds;
  $("time").textContent = state.file
    ? `search ${searched.toFixed(2)} ms · encoding ${encode.toFixed(0)} ms`
    : `search ${searched.toFixed(2)} ms`;
  $("nothing").hidden = answer.hits.length > 0;
  $("nothing").textContent = "No image matches.";
  const distances = far(answer.hits.map((hit) => hit.distance));
  $("hits").replaceChildren(...answer.hits.map((hit, i) => {
    const verdict = !known ? "" : hit.label === answer.label ? "right" : "wrong";
    const mark = { "": "", right: "✓", wrong: "✗" }[verdict];
    const card = element("button", { type: "button", className: `card ${verdict}`, title: hit.id },
      picture(hit.id),
      element("span", {},
        element("b", { className: "what", textContent: hit.label ?? hit.id }),
        element("b", { className: "mark", textContent: mark })),
      element("span", { className: "far" },
        element("i", { textContent: `#${hit.rank}` }), distances[i]));
    card.setAttribute("aria-label",
      `rank ${hit.rank}, ${hit.label ?? hit.id}, distance ${distances[i]}${verdict && `, ${verdict}`}`);
    card.onclick = () => go(hit.id);
    return element("li", {}, card);
  }));
  draw();
}

function showQuery(source) {
  const image = $("query");
  image.hidden = false;
  image.onload = () => image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= PIXELS);
  image.src = source;
}

function go(id) {
  location.hash = encodeURIComponent(id);
}

function follow() {
  let id;
  try {
    id = decodeURIComponent(location.hash.slice(1));
  } catch {
    return; // not an address of this page's making
  }
  if (!id) {
    if (state.last) askFrom(state.last); // back to the image that was uploaded
    return;
  }
  state.item = id;
  state.file = null;
  showQuery(imageAddress(id, 512));
  search();
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function take(file) {
  if (!file) return;
  if (state.last) URL.revokeObjectURL(state.last.source);
  state.last = { file, source: URL.createObjectURL(file) };
  if (location.hash) history.pushState(null, "", location.pathname);
  askFrom(state.last);
}

function askFrom({ file, source }) {
  state.file = file;
  state.item = null;
  showQuery(source);
  search();
}

// The collection

async function showItems() {
  const wanted = new URLSearchParams({ index: current().name, limit: 24, seed: state.seed });
  if ($("label").value) wanted.set("where", `label=${$("label").value}`);
  const turn = ++state.shown;
  try {
    const { items } = await ask(`/api/items?${wanted}`);
    if (turn !== state.shown) return; // others are wanted by now
    $("items").replaceChildren(...items.map((item) => {
      const card = element("button", { type: "button", className: "card", title: item.id },
        picture(item.id, 128),
        element("span", {}, element("span", { className: "what", textContent: item.label ?? item.id })));
      card.setAttribute("aria-label", `search from ${item.label ?? ""} ${item.id}`);
      card.onclick = () => go(item.id);
      return element("li", {}, card);
    }));
  } catch (error) {
    complain(error);
  }
}

// The map

const view = { x: 0, y: 0, scale: 1 }; // what lies at the upper left, and how much is enlarged

async function showMap() {
  const index = current();
  state.map = null;
  $("map-section").hidden = false;
  $("map-help").textContent = "The map is being made…";
  draw();
  try {
    const map = await ask(`/api/map?${new URLSearchParams({ index: index.name })}`);
    if (index !== current()) return; // another map is wanted by now
    state.map = map;
    state.map.at = new Map(map.ids.map((id, i) => [id, i]));
    $("map-help").textContent =
      `${map.ids.length.toLocaleString()} images by ${map.method.toUpperCase()}. Click a point to search from it; scroll to zoom, drag to move.`;
    $("legend").replaceChildren(...map.labels.slice(0, 40).map((label, i) => {
      const dot = element("i", {});
      dot.style.background = colour(i);
      return element("li", {}, dot, label);
    }));
    Object.assign(view, { x: 0, y: 0, scale: 1 });
    draw();
  } catch (error) {
    if (index !== current()) return;
    $("map-help").textContent = error.message;
    $("legend").replaceChildren();
  }
}

const colour = (label) => (label < 0 ? COLOURS.at(-1) : COLOURS[label % COLOURS.length]);

function places() {
  const { width, height } = $("map").getBoundingClientRect();
  const edge = 16;
  return {
    x: (i) => edge + ((state.map.x[i] - view.x) * view.scale) * (width - 2 * edge),
    y: (i) => edge + ((1 - state.map.y[i] - view.y) * view.scale) * (height - 2 * edge),
    width, height, edge,
  };
}

function draw() {
  const canvas = $("map");
  const { width, height } = canvas.getBoundingClientRect();
  const dense = devicePixelRatio || 1;
  canvas.width = width * dense;
  canvas.height = height * dense;
  const pen = canvas.getContext("2d");
  pen.scale(dense, dense);
  if (!state.map) return;
  const at = places();
  const count = state.map.ids.length;
  const size = Math.min(6, Math.max(1.4, 180 / Math.sqrt(count))) * Math.min(2, Math.sqrt(view.scale));
  pen.globalAlpha = state.hits.length ? 0.45 : 0.75;
  for (let i = 0; i < count; i++) {
    const x = at.x(i), y = at.y(i);
    if (x < -size || y < -size || x > width + size || y > height + size) continue;
    pen.fillStyle = colour(state.map.label_of[i]);
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  }
  pen.globalAlpha = 1;
  const style = getComputedStyle(document.documentElement);
  const ring = (id, radius, stroke) => {
    const i = state.map.at.get(id);
    if (i === undefined) return;
    pen.beginPath();
    pen.arc(at.x(i), at.y(i), radius, 0, 2 * Math.PI);
    pen.fillStyle = colour(state.map.label_of[i]);
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = stroke;
    pen.stroke();
  };
  state.hits.forEach((hit) => ring(hit.id, 5, style.getPropertyValue("--ink")));
  if (state.item) ring(state.item, 8, style.getPropertyValue("--accent"));
}

function nearest(event) {
  if (!state.map) return -1;
  const box = $("map").getBoundingClientRect();
  const at = places();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let found = -1, least = NEAR ** 2;
  for (let i = 0; i < state.map.ids.length; i++) {
    const far = (at.x(i) - x) ** 2 + (at.y(i) - y) ** 2;
    if (far < least) [found, least] = [i, far];
  }
  return found;
}

function zoom(factor, event) {
  const box = $("map").getBoundingClientRect();
  const at = places();
  const scale = Math.min(60, Math.max(1, view.scale * factor));
  const x = (event.clientX - box.left - at.edge) / (at.width - 2 * at.edge);
  const y = (event.clientY - box.top - at.edge) / (at.height - 2 * at.edge);
  view.x += x / view.scale - x / scale;
  view.y += y / view.scale - y / scale;
  view.scale = scale;
  if (scale === 1) view.x = view.y = 0;
  draw();
}

function watchMap() {
  const canvas = $("map"), tip = $("tip"), fingers = new Map();
  let moved = 0, spread = 0, shown = -1;
  const hideTip = () => { tip.hidden = true; shown = -1; };
  canvas.onpointerdown = (event) => {
    fingers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    moved = 0;
    spread = 0;
  };
  canvas.onpointermove = (event) => {
    const before = fingers.get(event.pointerId);
    if (before && state.map) {
      fingers.set(event.pointerId, event);
      const at = places();
      if (fingers.size === 2) {
        const [a, b] = fingers.values();
        const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        if (spread) zoom(now / spread, { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
        spread = now;
        moved = NEAR;
        return;
      }
      const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
      moved += Math.hypot(dx, dy);
      view.x -= dx / view.scale / (at.width - 2 * at.edge);
      view.y -= dy / view.scale / (at.height - 2 * at.edge);
      hideTip();
      draw();
      return;
    }
    const i = nearest(event);
    if (i === shown) return;
    shown = i;
    tip.hidden = i < 0;
    if (i < 0) return;
    const at = places(), id = state.map.ids[i], label = state.map.label_of[i];
    tip.querySelector("img").src = imageAddress(id, 128);
    tip.querySelector("span").textContent = label < 0 ? id : state.map.labels[label];
    tip.style.left = `${Math.min(at.x(i) + 14, at.width - 120)}px`;
    tip.style.top = `${Math.min(at.y(i) + 14, at.height - 140)}px`;
  };
  canvas.onpointerup = (event) => {
    fingers.delete(event.pointerId);
    const i = moved < 6 ? nearest(event) : -1;
    if (i >= 0) go(state.map.ids[i]);
  };
  canvas.onpointercancel = (event) => fingers.delete(event.pointerId);
  canvas.onpointerleave = hideTip;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event);
  }, { passive: false });
  $("whole").onclick = () => { Object.assign(view, { x: 0, y: 0, scale: 1 }); draw(); };
  new ResizeObserver(draw).observe(canvas);
}

// What is pressed, dropped and pasted

function watchPage() {
  const drop = $("drop");
  drop.onclick = () => $("file").click();
  drop.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); }
  };
  $("file").onchange = () => { take($("file").files[0]); $("file").value = ""; };
  const over = (is) => (event) => { event.preventDefault(); drop.classList.toggle("over", is); };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", over(false));
  addEventListener("drop", (event) => { over(false)(event); take(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
    if (!typing && event.key === "o") $("file").click();
    if (!typing && event.key === "/") { event.preventDefault(); $("label").focus(); }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!typing && step) {
      const cards = [...document.querySelectorAll(".card")];
      const at = cards.indexOf(document.activeElement);
      cards[Math.min(cards.length - 1, Math.max(0, at + step))]?.focus();
    }
  });
  $("settings").onsubmit = (event) => event.preventDefault();
  $("metric").onchange = () => { showIndices(); changed(); };
  $("index").onchange = () => { showSettings(); changed(); };
  $("k").onchange = search;
  $("label").onchange = () => { showItems(); search(); };
  $("effort").oninput = () => {
    const value = current().effort.values[$("effort").value];
    $("effort-value").textContent = value;
    $("effort").setAttribute("aria-valuetext", `${current().effort.option} ${value}`);
    clearTimeout(state.soon);
    state.soon = setTimeout(search, 60);
  };
  $("others").onclick = () => { state.seed += 1; showItems(); };
  $("theme").onclick = () => {
    const dark = document.documentElement.dataset.theme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    localStorage.setItem("theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
    draw();
  };
}

function changed() {
  showItems();
  showMap();
  search();
}

async function start() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  watchPage();
  watchMap();
  try {
    state.indices = (await ask("/api/indices")).indices;
    const metrics = [...new Set(state.indices.map((each) => each.metric))];
    options($("metric"), [...(metrics.length > 1 ? [["", "any"]] : []), ...metrics.map((each) => [each, each.replace("_", " ")])]);
    showIndices();
    await showItems();
    follow();
    showMap();
  } catch (error) {
    complain(error);
  }
}

start();
