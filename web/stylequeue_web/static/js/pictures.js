// A zone that holds chosen pictures: by click, drop, paste or sample.

const NAMES = { content: "content picture", style: "style picture" };

export class Zone {
  constructor(element, { onChange, weights = [] }) {
    this.element = element;
    this.name = element.dataset.zone;
    this.max = Number(element.dataset.max);
    this.maxBytes = Number(element.dataset.maxMb) * 1e6;
    this.input = element.querySelector(".drop-input");
    this.list = element.querySelector(".chosen");
    this.pictures = [];
    this.weights = [...weights];
    this.onChange = onChange;
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      // So that the same file can be chosen again after it was removed.
      this.input.value = "";
    });
    for (const sample of element.querySelectorAll(".sample input")) {
      sample.addEventListener("change", () => this.toggleSample(sample));
    }
    this.listenForDrops();
  }

  // After a step back in history the browser has ticked samples by itself.
  restore() {
    for (const sample of this.element.querySelectorAll(".sample input:checked")) this.toggleSample(sample);
  }

  // Pictures of an earlier try lie on the server, which names them in boxes.
  get isFilled() {
    return this.pictures.length > 0 || this.element.querySelector(".kept input:checked") !== null;
  }

  listenForDrops() {
    const zone = this.element;
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
    zone.addEventListener("dragleave", (event) => {
      if (!zone.contains(event.relatedTarget)) zone.classList.remove("over");
    });
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
  }

  add(files, sample = null) {
    this.say("");
    for (const file of files) {
      const complaint = this.complaint(file);
      if (complaint) {
        this.say(complaint);
        continue;
      }
      if (this.max === 1) this.pictures.slice().forEach((one) => this.remove(one));
      const weight = this.weights.shift() ?? 1;
      this.pictures.push({ file, sample, weight, url: URL.createObjectURL(file) });
    }
    this.draw();
  }

  complaint(file) {
    const mb = (file.size / 1e6).toFixed(1);
    if (file.type && !file.type.startsWith("image/")) return `${file.name} is not a picture.`;
    if (!file.size) return `${file.name} is empty.`;
    if (file.size > this.maxBytes) return `${file.name} has ${mb} MB; at most ${this.maxBytes / 1e6} MB are allowed.`;
    if (this.max > 1 && this.pictures.length >= this.max) return `At most ${this.max} style pictures.`;
    return "";
  }

  remove(picture) {
    URL.revokeObjectURL(picture.url);
    this.pictures = this.pictures.filter((one) => one !== picture);
    if (picture.sample) picture.sample.checked = false;
  }

  async toggleSample(sample) {
    const there = this.pictures.find((one) => one.sample === sample);
    if (sample.checked && there) return;
    if (!sample.checked) {
      if (there) this.remove(there);
      return this.draw();
    }
    try {
      const answer = await fetch(sample.dataset.url);
      if (!answer.ok) throw new Error(answer.status);
      const blob = await answer.blob();
      // Another may have been clicked while this one was on its way.
      if (!sample.checked || this.pictures.some((one) => one.sample === sample)) return;
      const file = new File([blob], sample.dataset.title, { type: blob.type });
      this.add([file], sample);
      if (!this.pictures.some((one) => one.sample === sample)) sample.checked = false;
    } catch {
      sample.checked = false;
      this.say("The sample could not be loaded. Is the server still running?");
    }
  }

  say(text) {
    const place = this.element.querySelector(".field-error");
    place.textContent = text;
    place.hidden = !text;
    this.input.setAttribute("aria-invalid", text ? "true" : "false");
  }

  draw() {
    const some = this.pictures.length > 0;
    this.list.hidden = !some;
    this.element.classList.toggle("has-pictures", some);
    const many = this.max > 1;
    const label = !some ? (many ? "Choose style pictures" : "Choose a picture") : many ? "Add another" : "Choose another";
    this.element.querySelector(".drop-text").textContent = label;
    this.list.replaceChildren(...this.pictures.map((picture) => this.card(picture)));
    this.onChange?.();
  }

  card(picture) {
    const item = make("li", "picture");
    const image = make("img");
    image.src = picture.url;
    image.alt = "";
    // TIFF, for one: the server reads what the browser cannot show.
    image.addEventListener("error", () => (image.alt = "No preview; the server will check it."));
    const text = make("div", "picture-text");
    const name = make("span", "picture-name", picture.file.name);
    name.title = picture.file.name;
    text.append(name);
    const remove = make("button", "remove", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${NAMES[this.name]} ${picture.file.name}`);
    remove.addEventListener("click", () => {
      this.remove(picture);
      this.draw();
      this.input.focus();
    });
    item.append(image, text, remove);
    if (this.max > 1 && this.pictures.length > 1) item.append(this.weight(picture));
    return item;
  }

  weight(picture) {
    const label = make("label", "picture-weight", "Weight");
    const input = make("input", "form-control");
    Object.assign(input, { type: "number", min: "0", max: "1000000", step: "any", value: picture.weight, required: true });
    input.addEventListener("input", () => {
      picture.weight = input.valueAsNumber;
      this.onChange?.();
    });
    label.append(input);
    return label;
  }
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
