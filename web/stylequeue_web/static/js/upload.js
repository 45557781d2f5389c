// Send a form and report how much of it has gone; fetch cannot tell.

const REFUSALS = {
  413: "The pictures are too large.",
  429: "That were many submissions in a short time. Please wait a minute and try again.",
  503: "The queue is full or the disk is. Please try again later.",
};

export function upload(url, data, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.setRequestHeader("Accept", "application/json");
    request.responseType = "text";
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    request.addEventListener("load", () => resolve(read(request)));
    request.addEventListener("error", () =>
      reject(new Error("The server could not be reached. Your pictures are still here: try again.")),
    );
    onProgress(0);
    request.send(data);
  });
}

function read(request) {
  try {
    const answer = JSON.parse(request.responseText);
    if (answer.location || answer.errors) return answer;
    const errors = answer.field ? { [answer.field]: answer.detail } : {};
    return { errors, message: answer.field ? "" : answer.detail };
  } catch {
    return { message: REFUSALS[request.status] ?? `The server answered ${request.status}. Please try again.` };
  }
}
