// The losses over the steps, as an SVG with a logarithmic axis.

const HEIGHT = 280;
const WIDEST = 640;
const NARROWEST = 290;
const LEFT = 58;
const RIGHT = 72;
const TOP = 14;
const BOTTOM = 40;
const LINES = [
  ["style", "Style", "style_loss"],
  ["content", "Content", "content_loss"],
];

export function drawLosses(place, snapshots, selected) {
  const losses = snapshots.flatMap((one) => LINES.map(([, , key]) => one[key])).filter((loss) => loss > 0);
  if (!losses.length) return place.replaceChildren();
  const low = Math.floor(Math.log10(Math.min(...losses)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...losses))), low + 1);
  // As wide as its place, so that its letters keep their size on a phone.
  const width = Math.min(Math.max(place.clientWidth, NARROWEST), WIDEST);
  const last = Math.max(snapshots.at(-1).step, 1);
  const x = (step) => LEFT + (step / last) * (width - LEFT - RIGHT);
  const y = (loss) => TOP + ((high - Math.log10(loss)) / (high - low)) * (HEIGHT - TOP - BOTTOM);

  const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": summary(snapshots) });
  const every = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; power += every) {
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(10 ** power), y2: y(10 ** power) }));
    svg.append(make("text", { x: LEFT - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, decade(power)));
  }
  for (const fraction of [0, 0.5, 1]) {
    const step = Math.round(last * fraction);
    svg.append(make("text", { x: x(step), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(step)));
  }
  svg.append(make("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  svg.append(make("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "Step"));
  const middle = (TOP + HEIGHT - BOTTOM) / 2;
  svg.append(make("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, "Loss"));
  if (selected) svg.append(make("line", { class: "here", x1: x(selected.step), x2: x(selected.step), y1: TOP, y2: HEIGHT - BOTTOM }));

  const ends = LINES.map(([name, label, key]) => drawLine(svg, snapshots.filter((one) => one[key] > 0), name, label, key, x, y));
  keepApart(ends.filter(Boolean));
  place.replaceChildren(svg);
}

function drawLine(svg, points, name, label, key, x, y) {
  if (!points.length) return null;
  const path = points.map((one) => `${x(one.step).toFixed(1)},${y(one[key]).toFixed(1)}`).join(" ");
  svg.append(make("polyline", { class: `${name}-line`, points: path }));
  for (const one of points) {
    const dot = make("circle", { class: `${name}-dot`, cx: x(one.step), cy: y(one[key]), r: points.length > 40 ? 2 : 3.5 });
    dot.append(make("title", {}, `Step ${one.step}: ${label.toLowerCase()} ${one[key].toPrecision(3)}`));
    svg.append(dot);
  }
  const end = points.at(-1);
  const text = make("text", { class: "key", x: x(end.step) + 10, y: y(end[key]) + 4 }, label);
  svg.append(text);
  return text;
}

// The names at the lines' ends must not lie upon each other.
function keepApart(texts) {
  texts.sort((one, other) => one.getAttribute("y") - other.getAttribute("y"));
  for (let i = 1; i < texts.length; i += 1) {
    const above = Number(texts[i - 1].getAttribute("y"));
    if (texts[i].getAttribute("y") - above < 15) texts[i].setAttribute("y", above + 15);
  }
}

function summary(snapshots) {
  const [first, last] = [snapshots[0], snapshots.at(-1)];
  const words = LINES.map(([, label, key]) => `${label.toLowerCase()} loss from ${first[key].toPrecision(3)} to ${last[key].toPrecision(3)}`);
  return `Losses from step ${first.step} to ${last.step}: ${words.join(", ")}. The table below has the numbers.`;
}

function decade(power) {
  return power >= -3 && power <= 4 ? String(Number((10 ** power).toPrecision(1))) : `1e${power}`;
}

function make(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}
