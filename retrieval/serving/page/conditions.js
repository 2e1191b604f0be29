// Conditions of a filter, built from a column, a comparison and a value.

import { element } from "./dom.js";

const NULLS = [["is null", "is not known"], ["is not null", "is known"]];
const CONDITIONS = {
  text: [["=", "is"], ["!=", "is not"], ["ilike", "contains"], ["not ilike", "does not contain"], ...NULLS],
  number: [["=", "="], ["!=", "≠"], [">", ">"], [">=", "≥"], ["<", "<"], ["<=", "≤"], ...NULLS],
  time: [["=", "in"], [">=", "from"], [">", "after"], ["<=", "up to"], ["<", "before"], ...NULLS],
  boolean: [["= true", "is true"], ["= false", "is false"], ...NULLS],
};
const EXAMPLES = { text: "", number: "1000", time: "2024-05" };

// Return the comparisons of columns of this type, each with its text.
export const conditionsFor = (type) => CONDITIONS[type];

const hasValue = (type, comparison) => type !== "boolean" && !comparison.startsWith("is");

// Put an input for the value into its place, and hide the field if the comparison takes no value.
export function showValueInput(field, place, type, comparison) {
  field.hidden = !hasValue(type, comparison);
  const value = place.firstElementChild?.value ?? "";
  const input = element("input", {
    type: type === "number" ? "number" : "text", placeholder: EXAMPLES[type] ?? "", value, autocomplete: "off",
  });
  if (type === "number") input.step = "any";
  input.setAttribute("aria-label", "Value");
  if (place.firstElementChild?.type !== input.type || type === "time") place.replaceChildren(input);
  place.firstElementChild.placeholder = input.placeholder;
}

// Return the condition in the language of filters; an empty text if its value is missing.
export function condition({ name, type }, comparison, value) {
  const column = /^[\p{L}_][\p{L}\p{N}_]*$/u.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
  if (!hasValue(type, comparison)) return `${column} ${comparison}`;
  const given = value.trim();
  if (!given) return "";
  if (type !== "text") return `${column} ${comparison} ${given}`;
  const isPattern = comparison.endsWith("like");
  const text = (isPattern ? `%${given.replace(/[\\%_]/g, "\\$&")}%` : given).replaceAll("'", "''");
  return `${column} ${comparison} '${text}'`;
}
