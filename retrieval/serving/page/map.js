// The map of the collection: each image a point. Points are colored by label.

import { $, ask, element, imageAddress } from "./dom.js";
import { query } from "./query.js";
import { shown } from "./results.js";
import { current } from "./settings.js";

const COLORS = [
  "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
  "#9c6b4e", "#9498a0",
];
const NEAR = 14; // pixels around a click in which a point is meant

export let map = null; // the service's answer; null if there is no map
const view = { x: 0, y: 0, scale: 1 }; // what lies at the upper left, and how much is enlarged

export async function showMap() {
  const index = current();
  map = null;
  $("map-frame").hidden = $("whole").hidden = true;
  $("map-help").textContent = "The map is being made…";
  $("legend").replaceChildren();
  try {
    const made = await ask(`/api/map?${new URLSearchParams({ index: index.name })}`);
    if (index !== current()) return; // another map is wanted by now
    map = made;
    map.at = new Map(map.ids.map((id, i) => [id, i]));
    $("map-help").textContent = `${map.ids.length.toLocaleString("en")} images by ` +
      `${map.method.toUpperCase()}. Click a point to search by it; scroll to zoom, drag to move.`;
    $("legend").replaceChildren(...map.labels.slice(0, 40).map((label, i) => {
      const dot = element("i", {});
      dot.style.background = color(i);
      return element("li", {}, dot, label);
    }));
    Object.assign(view, { x: 0, y: 0, scale: 1 });
    $("map-frame").hidden = $("whole").hidden = false;
    draw();
  } catch (error) {
    if (index === current()) $("map-help").textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  }
}

const color = (label) => (label < 0 ? COLORS.at(-1) : COLORS[label % COLORS.length]);

export function places() {
  const { width, height } = $("map").getBoundingClientRect();
  const edge = 16;
  return {
    x: (i) => edge + ((map.x[i] - view.x) * view.scale) * (width - 2 * edge),
    y: (i) => edge + ((1 - map.y[i] - view.y) * view.scale) * (height - 2 * edge),
    width, height, edge,
  };
}

export function draw() {
  const canvas = $("map");
  if (!map) return;
  const { width, height } = canvas.getBoundingClientRect();
  const dense = devicePixelRatio || 1;
  canvas.width = width * dense;
  canvas.height = height * dense;
  const pen = canvas.getContext("2d");
  pen.scale(dense, dense);
  const at = places();
  const count = map.ids.length;
  const size = Math.min(6, Math.max(1.4, 180 / Math.sqrt(count))) * Math.min(2, Math.sqrt(view.scale));
  pen.globalAlpha = shown.hits.length ? 0.45 : 0.75;
  for (let i = 0; i < count; i++) {
    const x = at.x(i), y = at.y(i);
    if (x < -size || y < -size || x > width + size || y > height + size) continue;
    pen.fillStyle = color(map.label_of[i]);
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  }
  pen.globalAlpha = 1;
  const style = getComputedStyle(document.documentElement);
  const ring = (id, radius, stroke) => {
    const i = map.at.get(id);
    if (i === undefined) return;
    pen.beginPath();
    pen.arc(at.x(i), at.y(i), radius, 0, 2 * Math.PI);
    pen.fillStyle = color(map.label_of[i]);
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = stroke;
    pen.stroke();
  };
  shown.hits.forEach((hit) => ring(hit.id, 5, style.getPropertyValue("--ink")));
  query.like.forEach((id) => ring(id, 8, style.getPropertyValue("--accent")));
}

function nearest(event) {
  if (!map) return -1;
  const box = $("map").getBoundingClientRect();
  const at = places();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let found = -1, least = NEAR ** 2;
  for (let i = 0; i < map.ids.length; i++) {
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

export function watchMap(chosen) {
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
    if (before && map) {
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
    const at = places(), id = map.ids[i], label = map.label_of[i];
    tip.querySelector("img").src = imageAddress(current(), id, 128);
    tip.querySelector("span").textContent = label < 0 ? id : map.labels[label];
    tip.style.left = `${Math.min(at.x(i) + 14, at.width - 120)}px`;
    tip.style.top = `${Math.min(at.y(i) + 14, at.height - 140)}px`;
  };
  canvas.onpointerup = (event) => {
    fingers.delete(event.pointerId);
    const i = moved < 6 ? nearest(event) : -1;
    if (i >= 0) chosen(map.ids[i]);
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
