// The ring as a ring: the places that a layer reads light up, and kernels can be read again from a shorter ring.

import { arrowKeys, element, figure, mark, plane, shape, tiled } from "./draw.js";

const COLOURS = { plus: "var(--red)", minus: "var(--mark)" };

export function insideRing(place, net, seen, view, facts) {
  facts.forEach((ring, number) => {
    const chosen = ((view.rings ??= [])[number] ??= { layer: 0, share: 100 });
    const drawing = element("div", { className: "ring" });
    const kernels = element("div", { className: "row" });
    const list = element("div", { className: "choices", role: "radiogroup", ariaLabel: "Layer whose places are shown" });
    const shorter = element("input", { type: "range", min: 5, max: 100, value: chosen.share, ariaLabel: "Length of the ring in per cent" });
    const label = element("output");
    const draw = (touched = chosen.layer) => {
      const layer = ring.layers[touched];
      drawing.replaceChildren(picture(ring, layer));
      kernels.replaceChildren(...readings(ring, layer, Number(shorter.value) / 100));
      label.textContent = `${Math.round((ring.length * shorter.value) / 100).toLocaleString("en")} parameters`;
      mark(list, chosen.layer);
    };
    const choose = (layer) => { chosen.layer = layer; draw(); };
    ring.layers.forEach((layer, i) =>
      list.append(element("button", {
        type: "button", role: "radio", textContent: layer.name, onclick: () => choose(i),
        onmouseenter: () => draw(i), onmouseleave: () => draw(),
      }))
    );
    arrowKeys(list, choose);
    shorter.addEventListener("input", () => { chosen.share = Number(shorter.value); draw(); });
    place.append(
      element("h4", { textContent: facts.length > 1 ? `Ring ${number + 1} of ${facts.length}` : "The ring" }),
      element("p", { className: "soft", textContent:
        `${ring.length.toLocaleString("en")} parameters, read ${ring.read.toLocaleString("en")} times by ${ring.layers.length} layers ` +
        `(scheme ${ring.scheme}). Touch a layer: outward where it reads with a plus, inward with a minus.` }),
      list, drawing,
      element("label", { className: "slider" }, "Read from a ring of ", shorter, label), kernels
    );
    draw();
  });
}

function picture(ring, layer) {
  const size = 320;
  const svg = shape("svg", { viewBox: `${-size / 2} ${-size / 2} ${size} ${size}`, role: "img", "aria-label": `Places of the ring that ${layer.name} reads` });
  const bins = ring.bins;
  const strength = new Float32Array(bins);
  const counts = new Float32Array(bins);
  ring.values.forEach((value, i) => {
    const bin = Math.floor((i * bins) / ring.length);
    strength[bin] += Math.abs(value);
    counts[bin]++;
  });
  const most = Math.max(...strength.map((s, i) => s / counts[i]));
  const reads = Math.max(1, ...layer.plus, ...layer.minus);
  for (let bin = 0; bin < bins; bin++) {
    const [from, to] = [bin, bin + 1].map((b) => (2 * Math.PI * b) / bins - Math.PI / 2);
    const grey = 0.15 + (0.55 * strength[bin]) / counts[bin] / most;
    svg.append(shape("path", { d: arc(100, 112, from, to), fill: "currentColor", "fill-opacity": grey.toFixed(3) }));
    if (layer.plus[bin]) svg.append(shape("path", { d: arc(114, 114 + (42 * layer.plus[bin]) / reads, from, to), class: "plus" }));
    if (layer.minus[bin]) svg.append(shape("path", { d: arc(98 - (42 * layer.minus[bin]) / reads, 98, from, to), class: "minus" }));
  }
  const words = shape("text", { "text-anchor": "middle", y: -2, class: "label" }, layer.name);
  const more = shape("text", { "text-anchor": "middle", y: 16, class: "label soft" }, `${layer.weights.toLocaleString("en")} weights`);
  svg.append(words, more);
  return svg;
}

function arc(inner, outer, from, to) {
  const at = (radius, angle) => `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  return `M${at(inner, from)}L${at(outer, from)}A${outer} ${outer} 0 0 1 ${at(outer, to)}L${at(inner, to)}A${inner} ${inner} 0 0 0 ${at(inner, from)}Z`;
}

export function readAgain(ring, layer, length) {
  return layer.places.map((place, i) => ring.values[place % length] * layer.signs[i]);
}

function readings(ring, layer, share) {
  const length = Math.max(1, Math.round(share * ring.length));
  const [rows, columns, height = 1, width = 1] = layer.corner;
  const draw = (title, numbers) => {
    const { values, wide, tall } = tiled(numbers, [rows, columns, height, width]);
    return figure(title, plane(element("canvas", { className: "kernels" }), values, wide, tall, [-127, 127], "signed"));
  };
  const whole = readAgain(ring, layer, ring.length);
  const again = readAgain(ring, layer, length);
  const same = whole.filter((value, i) => value === again[i]).length;
  return [
    draw(`first kernels of ${layer.name}`, whole),
    draw(`from the shorter ring: ${Math.round((100 * same) / whole.length)} % the same`, again),
  ];
}
