// Requests to the server, its stream of events, and the two helpers that every module needs.

const client = sessionStorage.getItem("client") ?? crypto.randomUUID();
sessionStorage.setItem("client", client);

/** Make an element. Children are nodes or strings; strings become text, never markup. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Send a request; return its JSON, or throw an Error with the server's line. */
export async function request(method, path, body) {
  const headers = { "X-Studio-Client": client, ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const fault = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  throw new Error(fault.error);
}

/** Call handlers[kind](content) for every event after a cursor; the browser reconnects by itself. */
export function listen(cursor, handlers, connected) {
  const source = new EventSource(`/api/events?after=${encodeURIComponent(cursor)}&client=${encodeURIComponent(client)}`);
  for (const [kind, handle] of Object.entries(handlers)) {
    source.addEventListener(kind, (event) => handle(JSON.parse(event.data)));
  }
  source.addEventListener("open", () => connected(true));
  source.addEventListener("error", () => connected(false));
}

/** Read a file or blob as base64, as the API takes pictures. */
export async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let first = 0; first < bytes.length; first += 32768) {
    text += String.fromCharCode(...bytes.subarray(first, first + 32768));
  }
  return btoa(text);
}
