// The weights of the experts for this image, over those of the mean image of each class.

import { element, figure, plane } from "./draw.js";

export function insideCondconv(place, net, seen, view, facts, { classes }) {
  const routers = net.facts.outputs.filter((name) => name.startsWith("condconv/"));
  const drawn = element("div", { className: "row" });
  for (const output of routers) {
    const name = output.slice(9).replace(/\/weights$/, "");
    const here = [...seen[output].data];
    const means = (facts[name] ?? []).map((row) => (row.length ? row : here.map(() => NaN)));
    const values = [...here, ...(means.length ? here.map(() => NaN) : []), ...means.flat()];
    const rows = values.length / here.length;
    const canvas = plane(element("canvas", { className: "routing" }), values, here.length, rows, [0, 1]);
    Object.assign(canvas.style, { width: `${Math.min(160, 16 * here.length)}px`, height: `${8 * rows}px` });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name}: weights ${here.map((w) => w.toFixed(2)).join(", ")}`);
    canvas.title = here.map((w) => w.toFixed(2)).join(" ");
    drawn.append(figure(name, canvas));
  }
  const below = Object.keys(facts).length ? ` Below: the mean for ${classes.join(", ")}.` : "";
  place.append(
    element("h4", { textContent: "How this image mixes the experts" }),
    element("p", { className: "soft", textContent: `First row: the weights for this image, a column for each expert, from 0 (dark) to 1 (bright).${below}` }),
    drawn
  );
}
