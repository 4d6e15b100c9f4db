// Server-sent events from bytes that may be cut anywhere. Does no I/O.

export class EventDecoder {
  #utf8 = new TextDecoder();
  #rest = "";
  #data = [];

  /** The data of each event that `bytes` completed. Comments and other fields are dropped. */
  feed(bytes) {
    const text = this.#rest + this.#utf8.decode(bytes, { stream: true });
    // A carriage return at the very end may be half of a line break: it waits for what follows.
    const end = text.endsWith("\r") ? text.length - 1 : text.length;
    const lines = text.slice(0, end).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + text.slice(end);
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return events;
  }
}
