// The page of `retr serve`: it connects the search box, the results, the large view and the map.

import { showChips } from "./chips.js";
import { $, calm, complain } from "./dom.js";
import { draw, showMap, watchMap } from "./map.js";
import { lean, query, recall, remember, reset, setPictures } from "./query.js";
import { search, showItems, shown } from "./results.js";
import { openSettings } from "./settings.js";
import { openViewer, watchViewer } from "./viewer.js";

const TYPING_MILLISECONDS = 200; // without a keystroke before a search begins

let later; // the search that begins when the typing pauses

function searchNow() {
  clearTimeout(later);
  showChips(asked);
  search(draw);
}

// Remember the query and search for it.
function asked() {
  remember();
  searchNow();
}

function typed() {
  query.words = $("words").value;
  clearTimeout(later);
  later = setTimeout(() => {
    remember(true);
    searchNow();
  }, TYPING_MILLISECONDS);
}

function follow() {
  recall();
  $("words").value = query.words;
  searchNow();
}

function take(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!pictures.length) {
    if (files.length) complain(new Error(`${files[0].name} is not a picture; drop an image file`));
    return;
  }
  setPictures(pictures);
  asked();
}

const toTop = () => scrollTo({ top: 0, behavior: calm() ? "auto" : "smooth" });

function leanTo(id, side) {
  lean(id, side);
  asked();
  toTop();
}

function searchAlone(id) {
  reset([id]);
  $("words").value = "";
  asked();
  toTop();
}

// Cards of hits and of the collection

function openCard(card) {
  const isHit = card.parentElement === $("hits");
  const pictures = isHit ? shown.hits : shown.items;
  const position = pictures.findIndex(({ id }) => id === card.dataset.id);
  if (position >= 0) openViewer(pictures, position, isHit ? shown.distances : []);
}

function watchCards() {
  for (const grid of [$("hits"), $("items")]) {
    grid.onclick = (event) => {
      const button = event.target.closest("button");
      const card = event.target.closest(".card");
      if (!button || !card) return;
      if (button.dataset.side) leanTo(card.dataset.id, button.dataset.side);
      else openCard(card);
    };
  }
}

// Return the card that an arrow key leads to from the focused one; the first if none is focused.
function cardBeside(key) {
  const cards = [...document.querySelectorAll(".card")];
  const card = document.activeElement.closest(".card");
  if (!card) return cards[0];
  const at = cards.indexOf(card);
  const sideways = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (sideways) return cards[at + sideways];
  const own = card.getBoundingClientRect();
  const rows = cards.filter((each) => {
    const { top } = each.getBoundingClientRect();
    return key === "ArrowDown" ? top > own.bottom - 1 : top < own.top - 1;
  });
  const tops = rows.map((each) => each.getBoundingClientRect().top);
  const nearest = key === "ArrowDown" ? Math.min(...tops) : Math.max(...tops);
  const aside = (each) => Math.abs(each.getBoundingClientRect().left - own.left);
  return rows.filter((_, i) => Math.abs(tops[i] - nearest) < 2).sort((a, b) => aside(a) - aside(b))[0];
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("viewer").open) return;
  const target = event.target;
  if (target === $("words") && event.key === "ArrowDown") {
    $("hits").querySelector(".open")?.focus();
    event.preventDefault();
  }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName)) return;
  if (event.key === "/") {
    event.preventDefault();
    ($("words").disabled ? $("pick") : $("words")).focus();
  }
  if (event.key === "o") $("file").click();
  if (event.key.startsWith("Arrow") && (target.closest(".card") || /^Arrow(Left|Right)$/.test(event.key))) {
    const card = cardBeside(event.key);
    if (card) { event.preventDefault(); card.querySelector(".open").focus(); }
  }
  const card = target.closest(".card");
  const side = { "+": "like", "-": "unlike" }[event.key];
  if (card && side) leanTo(card.dataset.id, side);
}

function watchFiles() {
  $("pick").onclick = () => $("file").click();
  $("file").onchange = () => { take($("file").files); $("file").value = ""; };
  const over = (is) => (event) => { event.preventDefault(); document.body.classList.toggle("dropping", is); };
  const holdsFiles = (event) => [...event.dataTransfer.types].includes("Files");
  addEventListener("dragover", (event) => { if (holdsFiles(event)) over(true)(event); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false)(event); });
  addEventListener("drop", (event) => {
    if (holdsFiles(event)) { over(false)(event); take(event.dataTransfer.files); }
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files); }
  });
}

function watchPage() {
  $("words").oninput = typed;
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    query.words = $("words").value;
    remember(true);
    searchNow();
  };
  $("clear").onclick = () => { reset(); $("words").value = ""; asked(); $("words").focus(); };
  $("balance").oninput = () => { clearTimeout(later); later = setTimeout(searchNow, 60); };
  $("others").onclick = () => showItems(true);
  $("theme").onclick = () => {
    const dark = document.documentElement.dataset.theme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    localStorage.setItem("theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
    draw();
  };
  addEventListener("popstate", follow);
  addEventListener("keydown", pressed);
  watchFiles();
  watchCards();
  watchViewer(
    { more: (id) => leanTo(id, "like"), less: (id) => leanTo(id, "unlike"), alone: searchAlone },
    (id) => document.querySelector(`.card[data-id="${CSS.escape(id)}"] .open`)?.focus(),
  );
  watchMap(searchAlone);
}

async function start() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  try {
    await openSettings({
      search: searchNow,
      words: searchNow,
      filter: () => { showItems(); searchNow(); },
      index: () => { showItems(); showMap(); searchNow(); },
    });
    watchPage();
    follow();
    await showItems();
    showMap();
  } catch (error) {
    complain(error);
  }
}

start();
