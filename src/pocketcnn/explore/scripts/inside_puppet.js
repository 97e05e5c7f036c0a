// The measure of the image on the calibration curve, the blocks that it passes, and the kernels along the trajectory.

import { element, figure, number, plane, shape, tiled } from "./draw.js";

export function insidePuppet(place, net, seen, view, facts) {
  if (facts.quantiles && seen["puppet/value"]) {
    const value = seen["puppet/value"].data[0];
    const level = Math.round(seen["puppet/level"].data[0]);
    const words = `${facts.measure} ${number(value)}${facts.measure === "entropy" ? " bits" : ""}: level ${level + 1} of ${facts.depths.length}, ` +
      `${facts.depths[level]} of ${facts.blocks} blocks`;
    place.append(
      element("h4", { textContent: "How deep this image goes" }),
      element("p", { className: "depth", textContent: words }),
      blocks(facts.depths[level], facts.blocks),
      curve(facts, value),
      element("p", { className: "soft", textContent: sentence(facts) })
    );
  }
  facts.kernels.forEach(({ shape: [states, rows, columns, height, width], numbers }, i) => {
    const size = rows * columns * height * width;
    const drawn = element("div", { className: "row" });
    for (let state = 0; state < states; state++) {
      const { values, wide, tall } = tiled(numbers.slice(state * size, (state + 1) * size), [rows, columns, height, width]);
      drawn.append(figure(`${state + 1}`, plane(element("canvas", { className: "kernels small" }), values, wide, tall, [-127, 127], "signed")));
    }
    place.append(element("h4", { textContent: `Kernels along the trajectory${facts.kernels.length > 1 ? ` ${i + 1}` : ""}` }), drawn);
  });
}

function sentence({ calibrated, measure }) {
  if (!calibrated) return "Not calibrated: levels are equal parts of the measure's range.";
  return measure === "entropy" ? "Blur the image and the entropy falls, and with it the depth." : "Levels hold equal shares of the calibration images.";
}

function blocks(passed, all) {
  const drawn = element("div", { className: "blocks", ariaHidden: "true" });
  for (let block = 0; block < all; block++) drawn.append(element("span", { className: block < passed ? "passed" : "" }));
  return drawn;
}

function curve({ quantiles, depths, histogram, measure }, value) {
  const [width, height] = [320, 130];
  const [low, high] = [Math.min(quantiles[0], value), Math.max(quantiles.at(-1), value)];
  const x = (v) => 8 + ((width - 16) * (v - low)) / (high - low || 1);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height + 22}`, class: "chart curve", role: "img", "aria-label": `Calibration curve: share of images with less ${measure}` });
  if (histogram) {
    const most = Math.max(...histogram.counts);
    const step = (histogram.high - histogram.low) / histogram.counts.length;
    histogram.counts.forEach((count, i) => {
      const [from, to] = [x(histogram.low + i * step), x(histogram.low + (i + 1) * step)];
      svg.append(shape("rect", { x: from, width: Math.max(0.5, to - from - 0.5), y: height - (0.9 * height * count) / most, height: (0.9 * height * count) / most, class: "bars" }));
    });
  }
  const line = quantiles.map((q, i) => `${x(q)} ${height - (height * i) / (quantiles.length - 1)}`);
  svg.append(shape("polyline", { points: line.join(" "), class: "line" }));
  for (let level = 1; level < depths.length; level++) {
    const border = quantiles[Math.round((level * (quantiles.length - 1)) / depths.length)];
    svg.append(shape("line", { x1: x(border), x2: x(border), y1: 0, y2: height, class: "border" }));
  }
  svg.append(shape("line", { x1: x(value), x2: x(value), y1: 0, y2: height, class: "here" }));
  svg.append(shape("text", { x: 8, y: height + 16, class: "label soft" }, number(low)));
  svg.append(shape("text", { x: width - 8, y: height + 16, "text-anchor": "end", class: "label soft" }, number(high)));
  svg.append(shape("text", { x: width / 2, y: height + 16, "text-anchor": "middle", class: "label soft" }, measure));
  return svg;
}
