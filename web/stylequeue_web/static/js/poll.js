// Poll a job by its ETag until it has ended.

const SHORTEST = 0.7;
const LONGEST = 5;
const HIDDEN = 20;
const LONGEST_AFTER_ERROR = 30;

// onJob(job) for each new state, onTrouble(text) when the server cannot be reached or
// answers an error ("" when it is back). Stops when the job has ended or is gone.
export function watch(url, { onJob, onTrouble, isOver }) {
  let etag = null;
  let pause = SHORTEST;
  let failures = 0;
  let timer = 0;
  let busy = false;
  let over = false;

  async function poll() {
    if (busy || over) return;
    busy = true;
    clearTimeout(timer);
    let atLeast = 0;
    try {
      const headers = etag ? { "If-None-Match": etag } : {};
      // no-store: the 304 must reach us rather than be answered from the cache.
      const answer = await fetch(url, { headers, cache: "no-store" });
      atLeast = seconds(answer.headers.get("Retry-After"));
      await take(answer);
    } catch {
      failures += 1;
      onTrouble("The server cannot be reached. Trying again …");
    }
    busy = false;
    if (!over) timer = setTimeout(poll, 1000 * Math.max(atLeast, wait()));
  }

  async function take(answer) {
    if (answer.status === 304) {
      recovered();
      pause = Math.min(pause * 1.4, LONGEST);
    } else if (answer.ok) {
      etag = answer.headers.get("ETag");
      const job = await answer.json();
      recovered();
      pause = SHORTEST;
      over = isOver(job);
      onJob(job);
    } else if (answer.status === 404) {
      over = true;
      onTrouble("This job has been deleted.");
    } else {
      failures += 1;
      onTrouble(`The server answered ${answer.status}. Trying again …`);
    }
  }

  function recovered() {
    if (failures) onTrouble("");
    failures = 0;
  }

  function wait() {
    if (document.hidden) return HIDDEN;
    return failures ? Math.min(2 ** failures, LONGEST_AFTER_ERROR) : pause;
  }

  document.addEventListener("visibilitychange", () => document.hidden || poll());
  addEventListener("online", poll);
  poll();
  // For a request of the visitor's own, whose effect should show at once.
  return () => {
    pause = SHORTEST;
    poll();
  };
}

// Retry-After is a number of seconds or a date.
function seconds(text) {
  if (!text) return 0;
  const number = Number(text);
  return Number.isFinite(number) ? number : Math.max(0, (Date.parse(text) - Date.now()) / 1000) || 0;
}
