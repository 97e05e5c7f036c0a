// A Global layer: velocity as arrows over the map that it moves, diffusivity, and the field through the solver's steps.

import { channelOf, element, figure, limits, mostOf, number, plane, shape } from "./draw.js";

export function insidePde(place, net, seen, view, facts) {
  const layers = Object.keys(facts);
  view.layer = layers.includes(view.layer) ? view.layer : layers[0];
  const choice = element("select", { ariaLabel: "Global layer" }, ...layers.map((name) => element("option", { value: name, textContent: name, selected: name === view.layer })));
  const channel = element("input", { type: "range", min: 0, ariaLabel: "Channel" });
  const step = element("input", { type: "range", min: 0, ariaLabel: "Step of the solver" });
  const [channelLabel, stepLabel, drawn] = [element("output"), element("output"), element("div", { className: "row" })];
  const draw = () => {
    const of = (key) => seen[`pde/${view.layer}/${key}`];
    const [, channels, height, width] = of("H0").dims;
    channel.max = channels - 1;
    const { steps, dt } = facts[view.layer];
    step.max = steps.length - 1;
    const chosen = Math.min(view.pdeChannel ?? busiest(of, channels, steps.at(-1)), channels - 1);
    channel.value = chosen;
    step.value = view.step = Math.min(view.step ?? Infinity, steps.length - 1);
    const now = steps[view.step];
    const one = (key) => channelOf(of(key), chosen);
    const ends = steps.map((k) => limits(one(`H${k}`)));
    const common = [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))];
    channelLabel.textContent = `channel ${chosen}`;
    stepLabel.textContent = `step ${now} of ${steps.at(-1)}, time ${(now * dt).toFixed(1)}`;
    const map = (key, title, ends) => figure(title, plane(element("canvas", { className: "map" }), one(key), width, height, ends));
    const spread = (key, title) => {
      const values = one(key);
      const [least, most] = [Math.min(...values), Math.max(...values)].map((value) => number(value));
      return map(key, least === most ? `${title}, ${least} everywhere` : `${title}, ${least} to ${most}`, mostOf(values));
    };
    drawn.replaceChildren(
      figure("velocity", arrows(one("u"), one("v"), one("H0"), width, height)),
      spread("Dx", "diffusivity along x"), spread("Dy", "along y"), map(`H${now}`, `H[${now}]`, common)
    );
  };
  const change = (key, input) => () => { view[key] = key === "layer" ? input.value : Number(input.value); draw(); };
  choice.addEventListener("change", change("layer", choice));
  channel.addEventListener("input", change("pdeChannel", channel));
  step.addEventListener("input", change("step", step));
  place.append(
    element("h4", { textContent: "The solver" }), choice,
    element("label", { className: "slider" }, "Channel ", channel, channelLabel),
    element("label", { className: "slider" }, "Step ", step, stepLabel), drawn
  );
  draw();
}

// The channel that the layer changes most.
function busiest(of, channels, end) {
  let [best, most] = [0, -1];
  for (let c = 0; c < channels; c++) {
    const [first, last] = [channelOf(of("H0"), c), channelOf(of(`H${end}`), c)];
    const moved = last.reduce((sum, value, i) => sum + Math.abs(value - first[i]), 0);
    if (moved > most) [best, most] = [c, moved];
  }
  return best;
}

function arrows(u, v, behind, width, height) {
  const frame = element("div", { className: "layered" });
  frame.style.setProperty("--ratio", width / height);
  frame.append(plane(element("canvas", { className: "map" }), behind, width, height, limits(behind), "grey"));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Velocities as arrows; x points right and y down" });
  const every = Math.max(1, Math.round(Math.max(width, height) / 12));
  const fastest = Math.max(1e-9, mostOf(u.map((x, i) => Math.hypot(x, v[i])))[1]); // one fast pixel should not shrink the rest
  for (let row = every >> 1; row < height; row += every) {
    for (let column = every >> 1; column < width; column += every) {
      const speed = Math.hypot(u[row * width + column], v[row * width + column]);
      const scale = 1 / Math.max(fastest, speed);
      const [x, y] = [u[row * width + column] * scale, v[row * width + column] * scale];
      const length = Math.hypot(x, y);
      if (length < 0.04) continue;
      const [dx, dy] = [x * every * 1.3, y * every * 1.3];
      const [tipX, tipY] = [column + 0.5 + dx, row + 0.5 + dy];
      const head = 0.28 * every;
      const [ax, ay] = [dx / (length * every * 1.3), dy / (length * every * 1.3)];
      svg.append(shape("path", {
        d: `M${column + 0.5} ${row + 0.5}L${tipX} ${tipY}M${tipX - head * (ax + 0.6 * ay)} ${tipY - head * (ay - 0.6 * ax)}L${tipX} ${tipY}L${tipX - head * (ax - 0.6 * ay)} ${tipY - head * (ay + 0.6 * ax)}`,
        class: "arrow", "stroke-width": 0.09 * every,
      }));
    }
  }
  frame.append(svg);
  return frame;
}
