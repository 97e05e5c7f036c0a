// Content that the page carries: raw deflate in base 85, in script elements that the browser does not run.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
const VALUES = new Uint8Array(128);
[...DIGITS].forEach((digit, value) => { VALUES[digit.charCodeAt(0)] = value; });

export async function unpack(id) {
  return inflated(ofBase85(document.getElementById(`data-${id}`).textContent));
}

// Five digits are four bytes, the most significant first; what is missing of the last five counts as the highest digit.
export function ofBase85(text) {
  const bytes = new Uint8Array(4 * Math.ceil(text.length / 5));
  const view = new DataView(bytes.buffer);
  for (let place = 0; 5 * place < text.length; place++) {
    let value = 0;
    for (let i = 5 * place; i < 5 * place + 5; i++) value = 85 * value + (i < text.length ? VALUES[text.charCodeAt(i)] : 84);
    view.setUint32(4 * place, value);
  }
  return bytes.subarray(0, Math.floor((4 * text.length) / 5));
}

export async function inflated(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export function joined(parts) {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let start = 0;
  for (const part of parts) {
    whole.set(part, start);
    start += part.length;
  }
  return whole;
}
