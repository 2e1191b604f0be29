// The chips below the search box: what is searched for, each with a button that removes it.

import { $, element, imageAddress, sharpen } from "./dom.js";
import { joinedWords, parsedWords, query } from "./query.js";
import { current } from "./settings.js";

// Show the chips. changed: is called after one was removed.
export function showChips(changed) {
  const { texts, excluded } = parsedWords(current().words === false ? "" : query.words);
  const chips = [
    ...query.pictures.map((picture) => chip("picture", "picture", picture.file.name || "pasted", {
      source: picture.source,
      remove: () => { query.pictures = query.pictures.filter((each) => each !== picture); },
    })),
    ...texts.map((text) => chip("words", "", text, { remove: () => setWords([], excluded) })),
    ...excluded.map((text, i) => chip("not", "not", text, {
      remove: () => setWords(texts, excluded.filter((_, j) => j !== i)),
    })),
    ...query.like.map((id) => rowChip(id, "like", "more like")),
    ...query.unlike.map((id) => rowChip(id, "unlike", "less like")),
  ];
  $("chips").replaceChildren(...chips.map(({ kind, word, text, source, remove }) => {
    const name = `${word} ${text}`.trim();
    const button = element("button", { type: "button", textContent: "×", title: "Remove" });
    button.setAttribute("aria-label", `Remove ${name}`);
    button.onclick = () => {
      remove();
      changed();
      ($("chips").querySelector("button") ?? $("words")).focus();
    };
    return element("li", { className: `chip ${kind}`, title: name },
      ...(source ? [sharpen(element("img", { alt: "", src: source }))] : []),
      ...(word ? [element("span", { className: "kind", textContent: word })] : []),
      element("b", { textContent: text }), button);
  }));
  $("asked").hidden = chips.length === 0;
  $("clear").hidden = chips.length < 2;
  $("balance-field").hidden = !(texts.length && query.pictures.length + query.like.length);
}

const chip = (kind, word, text, { source, remove }) => ({ kind, word, text, source, remove });

function rowChip(id, side, word) {
  return chip(side, word, id, {
    source: imageAddress(current(), id, 128),
    remove: () => { query[side] = query[side].filter((each) => each !== id); },
  });
}

function setWords(texts, excluded) {
  $("words").value = query.words = joinedWords(texts, excluded);
}
