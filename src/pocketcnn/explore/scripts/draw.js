// Small helpers to build elements and to colour maps.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Moves the choice in a group of buttons by arrow keys, as in a group of radio buttons.
export function arrowKeys(group, choose) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const place = [...group.children].indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    const next = (place + step + group.children.length) % group.children.length;
    choose(next);
    group.children[next].focus();
  });
}

// Marks one button of such a group; only that one is reached by Tab.
export function mark(group, chosen) {
  [...group.children].forEach((button, i) => {
    button.setAttribute("aria-checked", i === chosen);
    button.tabIndex = i === Math.max(0, chosen) ? 0 : -1;
  });
}

const SVG = "http://www.w3.org/2000/svg";

export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Points of the colour map viridis, and of one from blue through white to red.
const SCALES = {
  map: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
  signed: [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]],
  grey: [[0, 0, 0], [255, 255, 255]],
};

export function colourOf(share, scale = "map") {
  const points = SCALES[scale];
  const place = Math.min(0.9999, Math.max(0, share)) * (points.length - 1);
  const low = points[Math.floor(place)];
  const high = points[Math.floor(place) + 1];
  return low.map((value, c) => Math.round(value + (place % 1) * (high[c] - value)));
}

export function limits(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return high > low ? [low, high] : [low - 1, low + 1];
}

// Limits without the most extreme hundredth of the values, so that a few pixels do not darken all others.
export function mostOf(values) {
  const sorted = Float32Array.from(values).sort();
  const [low, high] = [0.01, 0.99].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  return high > low ? [low, high] : limits(values);
}

// Draws a plane of numbers, row by row, into a canvas of as many pixels.
export function plane(canvas, values, width, height, [low, high] = limits(values), scale = "map") {
  sized(canvas, width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    const value = values[place];
    const rgb = Number.isNaN(value) ? null : colourOf((value - low) / (high - low), scale);
    if (rgb) image.data.set([...rgb, 255], 4 * place);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Sets the pixels of a canvas; the style sheet gives it their ratio on the screen.
export function sized(canvas, width, height) {
  Object.assign(canvas, { width, height });
  canvas.style.setProperty("--ratio", width / height);
}

// Kernels in a table [rows, columns, height, width] as one plane with gaps between them.
export function tiled(numbers, [rows, columns, height, width]) {
  const [wide, tall] = [columns * (width + 1) - 1, rows * (height + 1) - 1];
  const values = new Float32Array(wide * tall).fill(NaN);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++)
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++)
          values[(r * (height + 1) + y) * wide + c * (width + 1) + x] = numbers[((r * columns + c) * height + y) * width + x];
  return { values, wide, tall };
}

// The mean over channels of one image's maps [1, channels, height, width], or one channel.
export function channelOf({ data, dims }, channel) {
  const [, channels, height, width] = dims;
  const size = height * width;
  if (channel >= 0) return data.subarray(channel * size, (channel + 1) * size);
  const mean = new Float32Array(size);
  for (let c = 0; c < channels; c++) for (let i = 0; i < size; i++) mean[i] += data[c * size + i] / channels;
  return mean;
}

export function figure(title, ...children) {
  return element("figure", {}, ...children, element("figcaption", { textContent: title }));
}

export function number(value, digits = 3) {
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

export function bytes(count) {
  return count >= 1e6 ? `${number(count / 1e6)} MB` : count >= 1e4 ? `${number(count / 1e3)} kB` : `${count.toLocaleString("en")} bytes`;
}
