// What is searched for: pictures, words, and rows of the index. The address holds all but pictures.
// The page keeps these, each with a key, so that the browser's back button brings them back.

export const query = { pictures: [], words: "", like: [], unlike: [] };

const kept = new Map(); // every picture that was added, by its key
const opened = Date.now(); // keys of an earlier load of the page differ
let isTyping = false; // the address of words that are being typed is replaced, not added

// Return the words to search for, as a list of at most one text, and those to exclude. A minus
// before a word, or before words in quotes, excludes.
export function parsedWords(text) {
  const excluded = [];
  const wanted = text.replace(/(^|\s)[-−](?:"([^"]*)"?|([^\s"]+))/g, (_, before, quoted, word) => {
    const words = (quoted ?? word).trim();
    if (words) excluded.push(words);
    return before;
  }).replace(/(^|\s)[-−]+(?=\s|$)/g, "$1").replace(/"/g, " ").replace(/\s+/g, " ").trim();
  return { texts: wanted ? [wanted] : [], excluded };
}

// Return the words of the box for a text and words to exclude.
export const joinedWords = (texts, excluded) =>
  [...texts, ...excluded.map((words) => (/\s/.test(words) ? `-"${words}"` : `-${words}`))].join(" ");

export function isEmpty(takesWords) {
  const { texts, excluded } = takesWords ? parsedWords(query.words) : { texts: [], excluded: [] };
  return ![query.pictures, query.like, query.unlike, texts, excluded].some((part) => part.length);
}

export function setPictures(files) {
  query.pictures = files.map((file) => {
    const picture = { key: `${opened} ${kept.size}`, file, source: URL.createObjectURL(file) };
    kept.set(picture.key, picture);
    return picture;
  });
}

// Ask for more or less like a row. A row is on one side only.
export function lean(id, side) {
  const other = side === "like" ? "unlike" : "like";
  query[other] = query[other].filter((each) => each !== id);
  if (!query[side].includes(id)) query[side] = [...query[side], id];
}

export function reset(like = []) {
  Object.assign(query, { pictures: [], words: "", like, unlike: [] });
}

// Write the query into the address. typing: the words are being typed.
export function remember(typing = false) {
  const fields = new URLSearchParams();
  if (query.words.trim()) fields.set("words", query.words);
  query.like.forEach((id) => fields.append("like", id));
  query.unlike.forEach((id) => fields.append("unlike", id));
  const pictures = query.pictures.map(({ key }) => key);
  const address = location.pathname + (`${fields}` && `#${fields}`);
  const change = typing && isTyping ? "replaceState" : "pushState";
  isTyping = typing;
  history[change]({ pictures }, "", address);
}

// Read the query from the address. `#ID` is an address of earlier versions.
export function recall() {
  isTyping = false;
  const hash = location.hash.slice(1);
  const fields = new URLSearchParams(hash);
  let like = fields.getAll("like");
  if (hash && !hash.includes("=")) {
    try {
      like = [decodeURIComponent(hash)];
    } catch {
      like = []; // not an address of this page
    }
  }
  const pictures = (history.state?.pictures ?? []).map((key) => kept.get(key)).filter(Boolean);
  Object.assign(query, { pictures, words: fields.get("words") ?? "", like, unlike: fields.getAll("unlike") });
}
