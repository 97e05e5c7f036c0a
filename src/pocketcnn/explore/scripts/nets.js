// A net of the page: its graph is unpacked, and a session made, when it is first used.

import { joined, unpack } from "./bytes.js";

// The runtime runs one graph at a time.
let queue = Promise.resolve();

function inTurn(work) {
  const mine = queue.then(work);
  queue = mine.catch(() => {});
  return mine;
}

export class Net {
  constructor(facts, place, page, runtime) {
    Object.assign(this, { facts, place, page, runtime, times: [] });
  }

  // Logits to probabilities for pixels, a Uint8Array in the order channel, row, column; and the milliseconds it took. The mean
  // of the last 60 times is kept unless `timed` is false.
  async classify(pixels, { timed = true } = {}) {
    this.base ??= this.session(["base"]);
    const session = await this.base;
    const images = this.tensor(pixels);
    const { logits, ms } = await inTurn(async () => {
      if (!this.warm) await session.run({ images }); // the first pass sets up memory
      this.warm = true;
      const start = performance.now();
      const { logits } = await session.run({ images });
      return { logits, ms: performance.now() - start };
    });
    if (timed) this.times.push(ms);
    if (this.times.length > 60) this.times.shift();
    const probabilities = softmax(logits.data);
    return { probabilities, ms, best: largest(probabilities) };
  }

  // Everything that the graph shows of its inside, by name: { data, dims }.
  async look(pixels) {
    this.whole ??= this.session(["base", "inside"]);
    const session = await this.whole;
    return inTurn(() => session.run({ images: this.tensor(pixels) }));
  }

  async inside() {
    this.facts_inside ??= unpack(`facts-${this.place}`).then((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
    return this.facts_inside;
  }

  // Mean, because a median of a coarse clock's times is often 0.
  get ms() {
    return this.times.length ? this.times.reduce((sum, ms) => sum + ms, 0) / this.times.length : null;
  }

  async session(parts) {
    const bytes = joined(await Promise.all(parts.map((part) => unpack(`${part}-${this.place}`))));
    return this.runtime.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  }

  tensor(pixels) {
    return new this.runtime.Tensor("float32", normalised(pixels, this.page), [1, ...this.page.inputSize]);
  }
}

export function normalised(pixels, { inputSize, mean, std }) {
  const plane = inputSize[1] * inputSize[2];
  return Float32Array.from(pixels, (pixel, place) => {
    const channel = Math.floor(place / plane);
    return (pixel / 255 - mean[channel]) / std[channel];
  });
}

export function softmax(logits) {
  const most = Math.max(...logits);
  const shares = Array.from(logits, (value) => Math.exp(value - most));
  const sum = shares.reduce((total, share) => total + share, 0);
  return shares.map((share) => share / sum);
}

export function largest(values) {
  return values.reduce((best, value, place) => (value > values[best] ? place : best), 0);
}
