// The picture: newest snapshot or any earlier one, alone or against the original.

export class Stage {
  constructor(onSelect) {
    this.frame = document.querySelector("#frame");
    this.painted = document.querySelector("#painted");
    this.original = document.querySelector("#original");
    this.compare = document.querySelector("#compare");
    this.slider = document.querySelector("#steps");
    this.views = document.querySelector("#views");
    this.caption = document.querySelector("#caption");
    this.snapshots = [];
    this.onSelect = onSelect;
    for (const image of [this.painted, this.original]) {
      image.addEventListener("load", () => this.fit(image));
      if (image.complete) this.fit(image);
    }
    this.slider.addEventListener("input", () => this.show());
    this.compare.addEventListener("input", () => this.split());
    this.views.addEventListener("change", () => this.view());
    // A reload keeps the browser's choice of view.
    this.view();
  }

  // Keep the frame's shape by its picture, so that nothing jumps.
  fit(image) {
    const original = image === this.original;
    if (!image.naturalWidth || (original && !("waiting" in this.painted.dataset))) return;
    this.frame.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  }

  take(job) {
    const following = Number(this.slider.value) >= this.snapshots.length - 1;
    this.snapshots = job.snapshots;
    this.result = job.result;
    const last = Math.max(this.snapshots.length - 1, 0);
    this.slider.max = last;
    if (following) this.slider.value = last;
    document.querySelector("#steps-bar").hidden = this.snapshots.length < 2;
    this.views.hidden = !this.snapshots.length && !this.result;
    this.show();
  }

  get selected() {
    return this.snapshots[Number(this.slider.value)];
  }

  // At the far end stands the result itself, once there is one.
  show() {
    const atEnd = Number(this.slider.value) >= this.snapshots.length - 1;
    const picture = atEnd && this.result ? this.result : this.selected;
    this.onSelect(this.selected);
    if (!picture) return;
    if (new URL(this.painted.src).href !== new URL(picture.preview_url, location.href).href) this.swap(picture.preview_url);
    const text = picture === this.result ? this.describe(picture) : `After step ${picture.step}`;
    this.caption.textContent = text;
    this.painted.alt = `The painting: ${text.toLowerCase()}`;
    this.slider.setAttribute("aria-valuetext", text);
  }

  describe(result) {
    const name = result.partial ? "best picture so far" : "finished picture";
    return `The ${name}, ${result.width} × ${result.height} pixels`;
  }

  // Show a picture only once it is loaded: no flicker between snapshots.
  swap(url) {
    this.wanted = url;
    const next = new Image();
    next.addEventListener("load", () => {
      if (this.wanted !== url) return;
      delete this.painted.dataset.waiting;
      this.painted.src = url;
    });
    next.src = url;
  }

  view() {
    const value = this.views.querySelector("input:checked").value;
    this.frame.dataset.view = value;
    this.original.hidden = value === "painting";
    this.compare.hidden = value !== "compare";
    this.split();
  }

  split() {
    this.frame.style.setProperty("--split", `${this.compare.value}%`);
    this.compare.setAttribute("aria-valuetext", `${this.compare.value} % original`);
  }
}
