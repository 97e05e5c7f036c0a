// Accuracy against a cost, over the nets of the page, other records, and published nets in grey.

import { bytes, element, number, shape } from "./draw.js";

const AXES = { bytes: "bytes of the file", macs: "multiply-adds", ms: "ms for an image, in this browser" };
const [HEIGHT, LEFT, BELOW] = [340, 44, 40];

export class Trade {
  constructor(place, page, nets, choose) {
    Object.assign(this, { page, nets, choose, axis: "bytes" });
    this.drawing = element("div", { className: "trade" });
    this.words = element("p", { className: "soft", ariaLive: "polite", textContent: "Point at a mark to read its row. Choose one of this page's nets to put it beside the plain net." });
    this.select = element("select", { ariaLabel: "Cost on the horizontal axis", onchange: () => { this.axis = this.select.value; this.draw(); } },
      ...Object.entries(AXES).map(([value, textContent]) => element("option", { value, textContent })));
    place.append(element("label", { className: "slider" }, "Accuracy against ", this.select), this.drawing, this.words);
  }

  points() {
    const ours = this.nets.map((net) => ({ ...net.facts, kind: "net", net, bytes: net.facts.fileBytes, ms: net.ms }));
    const others = this.page.records.map((record) => ({ ...record, kind: "record", ms: null }));
    const published = this.page.published.map((row) => ({ ...row, kind: "published", ms: null, macs: null }));
    return [...published, ...others, ...ours].filter((point) => point[this.axis] > 0 && point.accuracy !== null);
  }

  draw() {
    const width = Math.min(900, Math.max(300, this.drawing.clientWidth)); // a unit is a pixel, so that words can be read
    const points = this.points();
    const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "chart", role: "group", "aria-label": `Accuracy against ${AXES[this.axis]}` });
    if (!points.length) {
      const known = this.nets.some((net) => net.facts.accuracy !== null);
      const words = known ? "No net has been timed yet: choose an image first." : "The accuracy of these nets is not recorded.";
      this.drawing.replaceChildren(element("p", { textContent: words }));
      return;
    }
    const costs = points.map((point) => Math.log10(point[this.axis]));
    const shares = points.map((point) => 100 * point.accuracy);
    const [left, right] = [Math.min(...costs) - 0.12, Math.max(...costs) + 0.12];
    const [low, high] = [Math.floor(Math.min(...shares) - 0.5), Math.ceil(Math.max(...shares) + 0.3)];
    const x = (cost) => LEFT + ((width - LEFT - 12) * (Math.log10(cost) - left)) / (right - left);
    const y = (share) => 8 + ((HEIGHT - BELOW - 8) * (high - 100 * share)) / (high - low);
    for (let share = low; share <= high; share += Math.max(1, Math.round((high - low) / 6))) {
      svg.append(shape("line", { x1: LEFT, x2: width - 12, y1: y(share / 100), y2: y(share / 100), class: "grid" }));
      svg.append(shape("text", { x: LEFT - 6, y: y(share / 100) + 4, "text-anchor": "end", class: "label soft" }, `${share} %`));
    }
    for (const cost of ticks(10 ** left, 10 ** right)) {
      svg.append(shape("line", { x1: x(cost), x2: x(cost), y1: 8, y2: HEIGHT - BELOW, class: "grid" }));
      svg.append(shape("text", { x: x(cost), y: HEIGHT - BELOW + 16, "text-anchor": "middle", class: "label soft" }, this.spoken(cost)));
    }
    svg.append(shape("text", { x: (LEFT + width) / 2, y: HEIGHT - 4, "text-anchor": "middle", class: "label soft" }, AXES[this.axis]));
    const taken = points.map((point) => [x(point[this.axis]), y(point.accuracy)]).map(([cx, cy]) => [cx - 5, cx + 5, cy - 5, cy + 5]);
    for (const point of points.filter((one) => one.kind !== "record").reverse()) { // this page's nets first
      const [cx, cy, mine] = [x(point[this.axis]), y(point.accuracy), point.kind === "net"];
      const words = mine ? point.name : point.name.replace(/^.*\((.*)\)$/, "$1");
      const place = freePlace(cx, cy, words.length * (mine ? 7 : 6), width, taken);
      if (!place) continue; // its row is read by pointing at it
      taken.push(place.box);
      svg.append(shape("text", { x: place.x, y: place.y, "text-anchor": place.anchor, class: mine ? "name" : "published-name" }, words));
    }
    for (const point of points) {
      const circle = shape("circle", { cx: x(point[this.axis]), cy: y(point.accuracy), r: point.kind === "net" ? 7 : 5, class: `mark ${point.kind} ${point.method ?? ""}`, tabindex: 0, role: point.kind === "net" ? "button" : "img" });
      const words = this.row(point);
      circle.dataset.name = `${point.kind} ${point.name}`;
      circle.setAttribute("aria-label", words);
      const tell = () => { this.words.textContent = words; };
      circle.addEventListener("mouseenter", tell);
      circle.addEventListener("focus", tell);
      if (point.kind === "net") {
        circle.addEventListener("click", () => this.choose(point.net));
        circle.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.choose(point.net); } });
      }
      svg.append(circle);
    }
    const had = this.drawing.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.drawing.replaceChildren(svg);
    if (had !== null) [...svg.querySelectorAll("circle")].find((one) => one.dataset.name === had)?.focus();
  }

  row(point) {
    const parts = [point.name, `${(100 * point.accuracy).toFixed(2)} %`];
    if (point.bytes) parts.push(bytes(point.bytes));
    if (point.macs) parts.push(`${number(point.macs / 1e6)} million multiply-adds`);
    if (point.ms > 0) parts.push(`${point.ms.toFixed(1)} ms here`);
    if (point.kind === "published") parts.push(`published, ${point.source}; bytes ${point.counted}`);
    return parts.join(", ");
  }

  spoken(cost) {
    return this.axis === "bytes" ? bytes(cost) : this.axis === "macs" ? `${number(cost / 1e6)} M` : `${number(cost)} ms`;
  }
}

// Beside or above or below a mark, where a name of some length covers no other; null if there is no such place.
function freePlace(cx, cy, length, width, taken) {
  const places = [[10, 4, "start"], [-10, 4, "end"], [10, -8, "start"], [10, 16, "start"], [-10, -8, "end"], [-10, 16, "end"]];
  for (const [dx, dy, anchor] of places) {
    const [x, y] = [cx + dx, cy + dy];
    const box = [anchor === "start" ? x : x - length, anchor === "start" ? x + length : x, y - 10, y + 3];
    const free = taken.every(([left, right, top, bottom]) => box[1] < left || box[0] > right || box[3] < top || box[2] > bottom);
    if (free && box[0] > LEFT && box[1] < width) return { x, y, anchor, box };
  }
  return null;
}

function ticks(low, high) {
  const found = [];
  const steps = high / low < 15 ? [1, 2, 5] : [1, 3];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) found.push(step * 10 ** power);
  return found;
}
