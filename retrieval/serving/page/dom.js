// Elements of the page, and addresses of the service.

const PIXELS = 64; // pictures up to this side are shown with sharp pixels

export const $ = (id) => document.getElementById(id);

// Return a new element with these properties and children.
export function element(name, properties, ...children) {
  const { dataset, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export function fillSelect(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text })));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
}

export const itemAddress = (id, what = "") =>
  `/api/items/${id.split("/").map(encodeURIComponent).join("/")}${what && `/${what}`}`;

export const imageAddress = (index, id, size = 256) =>
  `${itemAddress(id, "image")}?${new URLSearchParams({ index: index.name, size, v: index.version })}`;

// Show the pixels of a small picture sharply once it is loaded.
export function sharpen(image) {
  image.onload = () => image.classList.toggle(
    "pixels", Math.max(image.naturalWidth, image.naturalHeight) <= PIXELS);
  return image;
}

export function complain(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

// Ask the service. Throw its error, or an AbortError if the signal of the options aborts.
export async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the service does not answer; is 'retr serve' still running?");
  }
  const told = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return { error: `the service answered ${response.status}` };
  });
  if (!response.ok) throw new Error(told.error);
  return told;
}

// Return distances as text, with enough digits to tell different ones apart. Nine suffice for float32.
export function distanceTexts(distances) {
  const different = new Set(distances).size;
  for (let digits = 3; ; digits++) {
    const texts = distances.map((distance) => `${Number(distance.toPrecision(digits))}`);
    if (digits === 9 || new Set(texts).size === different) return texts;
  }
}

export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
