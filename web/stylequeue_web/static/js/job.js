// The page of one job: draws what polling brings.

import { drawLosses } from "./chart.js";
import "./keys.js";
import { watch } from "./poll.js";
import { Stage } from "./stage.js";
import { tell } from "./times.js";
import { asks, detail, duration, fact, faults, headline } from "./words.js";

const TERMINAL = ["succeeded", "failed", "cancelled"];
const find = (id) => document.querySelector(`#${id}`);
const page = find("job");
const isOver = (job) => TERMINAL.includes(job.state);
let snapshots = [];
let told = { state: page.dataset.state, at: 0 };

const stage = new Stage(drawChart);
new ResizeObserver(() => drawChart(stage.selected)).observe(find("losses"));

function drawChart(selected) {
  if (snapshots.length) drawLosses(find("chart"), snapshots, snapshots.length > 1 ? selected : null);
}

const first = JSON.parse(find("job-json").textContent);
draw(first);

if (!isOver(first)) {
  const again = watch(page.dataset.url, { onJob: draw, onTrouble: complain, isOver });
  for (const one of document.querySelectorAll("[data-ask]")) {
    one.addEventListener("submit", (event) => ask(event, one.dataset.ask, again));
  }
}

function draw(job) {
  snapshots = job.snapshots;
  page.dataset.state = job.state;
  setText("headline", headline(job));
  setText("detail", detail(job));
  find("expected").hidden = !job.eta_start;
  tell(find("eta-start"), job.eta_start);
  tell(find("eta-finish"), job.eta_finish);
  document.title = document.title.replace(/^.*? – /, `${titleOf(job)} – `);
  const chip = find("chip").firstElementChild;
  chip.className = `chip chip-${job.state}`;
  chip.textContent = job.state[0].toUpperCase() + job.state.slice(1);
  drawProgress(job);
  stage.take(job);
  if (!stage.selected && !job.result) {
    setText("caption", isOver(job) ? "No picture was painted" : `The first picture comes at step ${Math.min(job.settings.snapshot_every, job.settings.steps)}`);
  }
  drawTable(job.snapshots);
  drawEnd(job);
  announce(job);
}

function titleOf(job) {
  if (job.state !== "running" || !job.progress) return headline(job);
  return `${Math.floor((100 * job.progress.step) / job.progress.steps)} % painted`;
}

function drawProgress(job) {
  const { progress, settings } = job;
  find("bar").hidden = !["running", "paused"].includes(job.state);
  find("bar").value = progress?.step ?? 0;
  find("numbers").hidden = !progress;
  find("left").hidden = isOver(job);
  if (!progress) return;
  setText("n-step", `${progress.step} of ${settings.steps}`);
  setText("n-speed", progress.steps_per_second ? String(Number(progress.steps_per_second.toPrecision(3))) : "–");
  setText("n-left", duration(progress.eta_seconds));
}

function drawTable(rows) {
  find("losses").hidden = !rows.length;
  const body = find("loss-table").tBodies[0];
  if (body.rows.length > rows.length) body.replaceChildren();
  for (const one of rows.slice(body.rows.length)) {
    const row = body.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = one.step;
    row.append(head);
    for (const loss of [one.style_loss, one.content_loss]) row.insertCell().textContent = String(Number(loss.toPrecision(4)));
  }
}

function drawEnd(job) {
  for (const group of document.querySelectorAll("[data-actions]")) {
    group.hidden = (group.dataset.actions === "ended") !== isOver(job);
  }
  find("download").hidden = !job.result;
  if (job.result) find("download").href = job.result.url;
  find("failure").hidden = !job.error;
  if (job.error) {
    setText("failure-message", job.error.message);
    setText("failure-fault", faults[job.error.fault] ?? "");
  }
  setText("attempt", String(job.attempt));
  drawMadeWith(job.made_with ?? {});
  find("retry-action").querySelector("button").textContent = job.state === "succeeded" ? "Paint it again" : "Retry";
  const possible = asks(job);
  for (const one of document.querySelectorAll("[data-ask]")) {
    one.hidden = !possible.includes(one.dataset.ask);
    one.querySelector("button").disabled = one.dataset.ask === "cancel" && job.requested === "cancel";
  }
}

function drawMadeWith(entries) {
  const list = find("made-with").querySelector("dl");
  const rows = Object.entries(entries);
  find("made-with").hidden = !rows.length;
  const shown = JSON.stringify(entries);
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement("div");
      const [term, given] = [document.createElement("dt"), document.createElement("dd")];
      const [label, text] = fact(name, value);
      term.textContent = label[0].toUpperCase() + label.slice(1);
      given.textContent = text;
      row.append(term, given);
      return row;
    }),
  );
}

// Often enough to follow, seldom enough to listen to.
function announce(job) {
  const now = Date.now();
  if (job.state === told.state && now - told.at < 15000) return;
  if (told.at || job.state !== told.state) {
    const step = job.state === "running" && job.progress ? `, step ${job.progress.step} of ${job.progress.steps}` : "";
    setText("live", `${headline(job)}${step} ${isOver(job) ? "" : detail(job)}`.trim());
  }
  told = { state: job.state, at: now };
}

// What the button of that name stands for; the next poll tells what came of it.
async function ask(event, name, again) {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(first.links[name], { method: "POST" });
    // Too late for it, as the next poll will show.
    if (!answer.ok && answer.status !== 409) throw new Error(answer.status);
  } catch {
    complain("That did not reach the server. Please try again.");
  }
  button.disabled = false;
  again();
}

function complain(text) {
  setText("connection", text);
  find("connection").hidden = !text;
}

function setText(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}
