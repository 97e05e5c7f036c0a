// Images as pixels: Uint8Array in the order channel, row, column, of the size that the nets take.

import { sized } from "./draw.js";

// Blur in pixels (standard deviation), contrast as a factor, noise in grey levels (standard deviation).
export function altered(pixels, [channels, height, width], { blur, contrast, noise }) {
  let values = Float32Array.from(pixels);
  if (blur > 0) values = blurred(values, channels, height, width, blur);
  const random = normals(1);
  const made = new Uint8Array(values.length);
  for (let place = 0; place < values.length; place++) {
    const value = 127.5 + contrast * (values[place] - 127.5) + (noise > 0 ? noise * random() : 0);
    made[place] = Math.min(255, Math.max(0, Math.round(value)));
  }
  return made;
}

// Pixels of several images from their steps to the pixel on the left.
export function summed(steps, width) {
  const pixels = Uint8Array.from(steps);
  for (let place = 0; place < pixels.length; place++) if (place % width) pixels[place] += pixels[place - 1];
  return pixels;
}

function blurred(values, channels, height, width, sigma) {
  const reach = Math.ceil(3 * sigma);
  const weights = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-((i - reach) ** 2) / (2 * sigma * sigma)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const along = (from, count, step, starts) => {
    const to = new Float32Array(from.length);
    for (const start of starts) {
      for (let i = 0; i < count; i++) {
        let total = 0;
        for (let k = -reach; k <= reach; k++) {
          const place = Math.min(count - 1, Math.max(0, i + k)); // the border's pixels go on
          total += weights[k + reach] * from[start + place * step];
        }
        to[start + i * step] = total / sum;
      }
    }
    return to;
  };
  const plane = height * width;
  const rows = Array.from({ length: channels * height }, (_, row) => row * width);
  const columns = Array.from({ length: channels * width }, (_, i) => Math.floor(i / width) * plane + (i % width));
  return along(along(values, width, 1, rows), height, width, columns);
}

// Normally distributed numbers, the same for each image.
function normals(seed) {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

const MOST_PIXELS = 64e6;

// The middle square of an image file, brought to the nets' size.
export async function ofFile(file, size) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This file"} is no image that this browser can read. Try a PNG or JPEG file.`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) {
    throw new Error(`${file.name || "This image"} has ${bitmap.width} x ${bitmap.height} pixels. At most 64 million fit.`);
  }
  return ofPicture(bitmap, bitmap.width, bitmap.height, size);
}

export function ofPicture(picture, fullWidth, fullHeight, [channels, height, width]) {
  const part = Math.min(fullWidth / width, fullHeight / height);
  const [left, top] = [(fullWidth - part * width) / 2, (fullHeight - part * height) / 2];
  // Halving first averages all pixels; one large step would leave most of them out.
  let [w, h] = [part * width, part * height];
  let [source, x, y] = [picture, left, top];
  const canvas = () => document.createElement("canvas");
  while (w > 2 * width && h > 2 * height) {
    const half = Object.assign(canvas(), { width: Math.ceil(w / 2), height: Math.ceil(h / 2) });
    half.getContext("2d").drawImage(source, x, y, w, h, 0, 0, half.width, half.height);
    [source, x, y, w, h] = [half, 0, 0, half.width, half.height];
  }
  const last = Object.assign(canvas(), { width, height });
  const context = last.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(source, x, y, w, h, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(channels * height * width);
  for (let place = 0; place < height * width; place++) {
    const rgb = [data[4 * place], data[4 * place + 1], data[4 * place + 2]];
    const grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    for (let c = 0; c < channels; c++) pixels[c * height * width + place] = channels === 3 ? rgb[c] : Math.round(grey);
  }
  return pixels;
}

export function show(canvas, pixels, [channels, height, width]) {
  sized(canvas, width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const plane = height * width;
  for (let place = 0; place < plane; place++) {
    for (let c = 0; c < 3; c++) image.data[4 * place + c] = pixels[(channels === 3 ? c : 0) * plane + place];
    image.data[4 * place + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// Paints a soft round spot into pixels.
export function dab(pixels, [channels, height, width], x, y, colour) {
  const radius = Math.max(height, width) / 16;
  for (let row = Math.max(0, Math.floor(y - 2 * radius)); row < Math.min(height, y + 2 * radius); row++) {
    for (let column = Math.max(0, Math.floor(x - 2 * radius)); column < Math.min(width, x + 2 * radius); column++) {
      const far = Math.hypot(row + 0.5 - y, column + 0.5 - x) / radius;
      const share = Math.min(1, Math.max(0, 1.5 - far));
      for (let c = 0; c < channels; c++) {
        const place = (c * height + row) * width + column;
        pixels[place] = Math.round(pixels[place] + share * (colour[c] - pixels[place]));
      }
    }
  }
}
