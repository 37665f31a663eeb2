// Requests to the server, and what goes wrong with them.

const PLAIN = {
  bad_image: "This file could not be read.",
  bad_request: "The server did not understand the request.",
  unknown_model: "This model is not there any more.",
  slow_body: "The upload took too long.",
  too_large: "The file is too large for this server.",
  unsupported_media_type: "This kind of file is not accepted.",
  invalid: "The model cannot answer this.",
  queue_full: "The server is busy.",
  draining: "The server is shutting down or restarting.",
  not_ready: "The model is still loading.",
  deadline: "The answer took too long.",
  wrong_host: "The server does not answer under this name.",
  model_failed: "The model failed on this file.",
  internal: "The server made a mistake.",
  gone: "The server does not answer.",
};

/** What stands between a question and its answer. */
export class Trouble extends Error {
  constructor(status, body, retryAfter) {
    super(body?.error ?? "");
    this.status = status;
    this.code = status === 401 ? "unauthorized" : (body?.code ?? (status ? "" : "gone"));
    this.id = body?.request_id ?? "";
    this.retryAfter = retryAfter;
  }

  /** What went wrong in plain words; `message` is what the server says. */
  get plain() {
    return PLAIN[this.code] ?? "The server could not answer.";
  }

  /** Whether the same question may be answered later. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** Send a request; `fetch` would not tell how much of a file has been sent. */
export function send(method, path, { token = "", body = null, onSending = null, signal = null } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
    if (onSending) {
      request.upload.onprogress = (event) => onSending(event.loaded / event.total);
      request.upload.onload = () => onSending(null);
    }
    request.onload = () => {
      const answer = parsed(request.responseText);
      if (request.status === 200 && answer !== null) resolve(answer);
      else reject(new Trouble(request.status, answer, Number(request.getResponseHeader("Retry-After"))));
    };
    request.onerror = () => reject(new Trouble(0, null, 0));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
