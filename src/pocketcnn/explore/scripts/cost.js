// What each net costs: a bar to scale for the bytes of its file, and its figures.

import { bytes, element } from "./draw.js";

export function showCosts(place, nets) {
  const most = Math.max(...nets.map((net) => net.facts.fileBytes));
  const parts = [...new Set(nets.flatMap((net) => net.facts.ledger.map(([part]) => part)))];
  const row = (net) => {
    const { facts } = net;
    const bar = element("div", { className: "ledger", role: "img", ariaLabel: facts.ledger.map(([part, size]) => `${part} ${bytes(size)}`).join(", ") });
    for (const [part, size] of facts.ledger) {
      const piece = element("span", { className: `part part${parts.indexOf(part) % 9}`, title: `${part}: ${size.toLocaleString("en")} bytes` });
      piece.style.width = `${(100 * size) / most}%`;
      bar.append(piece);
    }
    const cells = [
      bytes(facts.fileBytes), facts.accuracy === null ? "not recorded" : `${(100 * facts.accuracy).toFixed(2)} %`,
      facts.params.toLocaleString("en"), facts.macs.toLocaleString("en"), facts.depth.toLocaleString("en"),
      bytes(facts.graphBytes),
    ];
    return element("tr", {}, element("th", { scope: "row" }, facts.name, bar), ...cells.map((textContent) => element("td", { textContent })));
  };
  const titles = ["Net and its file", "file", "test accuracy", "parameters", "multiply-adds", "layers deep", "on this page"];
  place.append(
    element("div", { className: "scroll" },
      element("table", {},
        element("thead", {}, element("tr", {}, ...titles.map((textContent) => element("th", { scope: "col", textContent })))),
        element("tbody", {}, ...nets.map(row)))),
    element("ul", { className: "legend" }, ...parts.map((part, i) => element("li", {}, element("span", { className: `swatch part${i % 9}` }), part)))
  );
}
