// Pages opened from a file may not start workers, so there the site's search runs in a hidden frame that looks like one.
if (location.protocol === "file:") {
  globalThis.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.tell("message", { data });
      inside.importScripts = (...addresses) => Promise.all(addresses.map((one) => load(inside, one)));
      this.inside = inside;
      this.ready = load(inside, String(address));
    }

    tell(kind, values) {
      const event = Object.assign(new Event(kind), values);
      this.dispatchEvent(event);
      this[`on${kind}`]?.(event);
    }

    postMessage(data) {
      this.ready.then(() => {
        const event = Object.assign(new Event("message"), { data });
        this.inside.dispatchEvent(event);
        this.inside.onmessage?.(event);
      });
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}

function load(frame, address) {
  return new Promise((done, failed) => {
    const script = frame.document.createElement("script");
    Object.assign(script, { src: address, onload: done, onerror: () => failed(new Error(`${address} cannot be read`)) });
    frame.document.body.append(script);
  });
}
