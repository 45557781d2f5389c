// A new idempotency key each time that a page is shown: whoever comes back to it by the
// browser's button and presses again wants another job, and a double click does not.

addEventListener("pageshow", () => {
  for (const input of document.querySelectorAll("input[name=idempotency_key]")) input.value = newKey();
});

// randomUUID() is there only over TLS and on this machine.
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
