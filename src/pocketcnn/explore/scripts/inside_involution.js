// The kernel that a pixel makes: touch one, or move with the arrow keys.

import { element, figure, limits, plane } from "./draw.js";

export function insideInvolution(place, net, seen, view, facts) {
  const layers = Object.keys(facts);
  view.involution = layers.includes(view.involution) ? view.involution : layers[0];
  const choice = element("select", { ariaLabel: "Involution layer" }, ...layers.map((name) => element("option", { value: name, textContent: name, selected: name === view.involution })));
  const [drawn, words] = [element("div", { className: "row" }), element("p", { className: "soft", ariaLive: "polite" })];
  const draw = () => {
    const { data, dims } = seen[`involution/${view.involution}/kernels`];
    const [, groups, taps, height, width] = dims;
    const [tall, wide, down, along] = facts[view.involution];
    const size = height * width;
    view.pixel = [Math.min(view.pixel?.[0] ?? height >> 1, height - 1), Math.min(view.pixel?.[1] ?? width >> 1, width - 1)];
    const [row, column] = view.pixel;
    const sums = new Float32Array(size);
    for (let t = 0; t < groups * taps; t++) for (let i = 0; i < size; i++) sums[i] += data[t * size + i] ** 2;
    const canvas = plane(element("canvas", { className: "map pick", tabIndex: 0, role: "application", ariaLabel: "Pixel whose kernel is shown; arrow keys move it" }), sums.map(Math.sqrt), width, height);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(column, row, 1, 1);
    const move = (r, c) => { view.pixel = [Math.max(0, Math.min(height - 1, r)), Math.max(0, Math.min(width - 1, c))]; draw(); };
    canvas.addEventListener("pointerdown", (event) => {
      const box = canvas.getBoundingClientRect();
      move(Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(row + step[0], column + step[1]);
      drawn.querySelector(".pick").focus();
    });
    const kernels = Array.from({ length: Math.min(groups, 4) }, (_, g) =>
      Float32Array.from({ length: taps }, (_, t) => data[(g * taps + t) * size + row * width + column])
    );
    const most = Math.max(1e-9, ...kernels.flatMap((kernel) => limits(kernel).map(Math.abs)));
    drawn.replaceChildren(
      figure("norm of each pixel's kernel", canvas),
      ...kernels.map((kernel, g) => figure(`group ${g}`, plane(element("canvas", { className: "kernels small" }), kernel, wide, tall, [-most, most], "signed")))
    );
    words.textContent = `Pixel ${column}, ${row} (x, y): ${groups} kernel${groups > 1 ? "s" : ""} of ${tall}x${wide}, made from ${down * along > 1 ? `the mean of ${down}x${along} pixels of the layer's input` : "this pixel alone"}.`;
  };
  choice.addEventListener("change", () => { view.involution = choice.value; draw(); });
  place.append(element("h4", { textContent: "The kernel of a pixel" }), choice, words, drawn);
  draw();
}
