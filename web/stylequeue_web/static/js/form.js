// The submission form: pictures stay chosen when a submission is refused.

import "./keys.js";
import { Zone } from "./pictures.js";
import { followPresets } from "./presets.js";
import { upload } from "./upload.js";

const form = document.querySelector("#new-job");
const button = form.querySelector('button[type="submit"]');
const blend = form.elements.style_blend;
const bar = document.querySelector("#upload-bar");
const status = document.querySelector("#upload-text");

followPresets(form, JSON.parse(document.querySelector("#presets").textContent));

const [content, style] = ["content", "style"].map(
  (name) =>
    new Zone(form.querySelector(`[data-zone="${name}"]`), {
      weights: name === "style" ? blend.value.split(",").filter(Boolean).map(Number) : [],
      onChange: () => name === "style" && writeBlend(),
    }),
);

function writeBlend() {
  if (!style) return;
  const weights = style.pictures.map((one) => one.weight);
  const alike = weights.every((one) => one === weights[0]);
  blend.value = alike ? "" : weights.join(", ");
}

// A drop beside a zone must not make the browser leave the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  const inside = [content, style].find((zone) => zone.element.contains(document.activeElement));
  (inside ?? (content.pictures.length ? style : content)).add(files);
});

for (const field of form.querySelectorAll(".field")) {
  field.addEventListener("input", () => complain(field.dataset.field, ""));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clear();
  if (!check()) return focusFirst();
  busy(true);
  try {
    let answer = await upload(form.action, body(), showProgress);
    if (answer.csrf_token) {
      // The page is older than the visitor's session: the new token makes it current.
      form.elements.csrf_token.value = answer.csrf_token;
      answer = await upload(form.action, body(), showProgress);
    }
    if (answer.location) return location.assign(answer.location);
    refuse(answer);
  } catch (error) {
    refuse({ errors: {}, message: error.message });
  }
  busy(false);
});

// Coming back by the browser's button shows the page as it was left: busy.
addEventListener("pageshow", () => {
  busy(false);
  for (const zone of [content, style]) zone.restore();
});

function body() {
  const data = new FormData(form);
  for (const name of ["content", "style", "content_sample", "style_sample"]) data.delete(name);
  for (const zone of [content, style]) {
    for (const picture of zone.pictures) data.append(zone.name, picture.file);
  }
  return data;
}

function check() {
  if (!content.isFilled) content.say("Choose the picture to paint.");
  if (!style.isFilled) style.say("Choose at least one style picture.");
  for (const input of form.querySelectorAll(".field input, .field select")) {
    const field = input.closest(".field").dataset.field;
    if (!input.validity.valid) complain(field, input.validationMessage);
  }
  for (const input of style.list.querySelectorAll("input")) {
    if (!input.validity.valid) style.say(`Weight: ${input.validationMessage}`);
  }
  for (const layers of form.querySelectorAll(".layers")) {
    if (!layers.querySelector("input:checked")) complain(layers.dataset.field, "Choose at least one layer.");
  }
  return !form.querySelector(".field-error:not([hidden])");
}

function refuse({ errors = {}, message = "" }) {
  const unplaced = message ? [message] : [];
  for (const [name, text] of Object.entries(errors)) {
    if (name === "style_blend") style.say(text);
    else if (name === "content") content.say(text);
    else if (name === "style") style.say(text);
    else if (!complain(name, text)) unplaced.push(text);
  }
  const box = document.querySelector("#form-error");
  box.textContent = unplaced.join(" ");
  box.hidden = !unplaced.length;
  focusFirst();
}

function complain(name, text) {
  const place = form.querySelector(`[data-error="${name}"]`);
  if (!place) return false;
  place.textContent = text;
  place.hidden = !text;
  for (const input of form.querySelectorAll(`.field [name="${name}"]`)) input.setAttribute("aria-invalid", String(Boolean(text)));
  return true;
}

function clear() {
  for (const place of form.querySelectorAll(".field-error")) complain(place.dataset.error, "");
  for (const zone of [content, style]) zone.say("");
  document.querySelector("#form-error").hidden = true;
}

function focusFirst() {
  const place = form.querySelector("#form-error:not([hidden]), .field-error:not([hidden])");
  if (!place) return;
  const details = place.closest("details");
  if (details) details.open = true;
  const box = place.closest(".field, .zone");
  (box?.querySelector("input:not(.visually-hidden), select") ?? place).focus();
  place.scrollIntoView({ block: "center" });
}

function busy(yes) {
  button.disabled = yes;
  bar.hidden = !yes;
  if (!yes) status.textContent = "";
}

function showProgress(fraction) {
  bar.value = 100 * fraction;
  status.textContent = fraction < 1 ? `Uploading, ${Math.round(100 * fraction)} %` : "Checking the pictures …";
}
