// What a job's state reads as; `words.py` has the tables and says the same.

export const { headlines, requested, faults } = JSON.parse(document.querySelector("#vocabulary").textContent);

export function headline(job) {
  return requested[job.requested] ?? headlines[job.state];
}

// What may be asked of a job just now; the page has a button for each.
export function asks(job) {
  const found = [];
  if (job.state === "paused" || job.requested === "pause") found.push("resume");
  else if (["queued", "running"].includes(job.state) && !job.requested) found.push("pause");
  const hasPicture = job.snapshots.length > 0 || (job.state === "running" && job.progress);
  if ((!job.requested || job.requested === "pause") && hasPicture) found.push("finish");
  return [...found, "cancel"];
}

export function detail(job) {
  if (job.state === "queued") return [place(job.queue_position), expected(job, " once it starts")].filter(Boolean).join(", ");
  if (job.state === "running" && !job.progress) return ["Getting ready", expected(job, " in all")].filter(Boolean).join(", ");
  if (job.state === "paused" && job.progress) return `after step ${job.progress.step}`;
  if (job.started_at && job.finished_at) {
    return `in ${duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000)}`;
  }
  return "";
}

function expected(job, when) {
  return job.estimate && !job.progress ? `about ${about(job.estimate.seconds)}${when}` : "";
}

function about(seconds) {
  if (seconds < 10) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 100) return `${5 * Math.round(seconds / 5)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function place(position) {
  if (!position) return "";
  return position === 1 ? "next in line" : `number ${position} in line`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

// What a job was made with: its name and its value, as words.py writes them.
export function fact(name, found) {
  const label = name.replace(/_bytes$/, "").replaceAll("_", " ");
  if (found === null) return [label, "–"];
  if (typeof found === "boolean") return [label, found ? "yes" : "no"];
  if (name.endsWith("_bytes")) return [label, `${Math.round(found / 1e6)} MB`];
  if (typeof found === "object") {
    return [label, Object.entries(found).map(([part, one]) => fact(part, one).join(" ")).join(", ")];
  }
  return [label, String(found)];
}
