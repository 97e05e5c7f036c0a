// Feature maps after each stage of any net.

import { channelOf, element, figure, plane } from "./draw.js";

export function insideMaps(place, net, seen, view) {
  const stages = net.facts.outputs.filter((name) => name.startsWith("maps/") && seen[name].dims.length === 4);
  if (!stages.length) return;
  const most = Math.max(...stages.map((name) => seen[name].dims[1]));
  const drawn = element("div", { className: "row" });
  const draw = () => {
    drawn.replaceChildren(
      ...stages.map((name) => {
        const [, channels, height, width] = seen[name].dims;
        const channel = view.channel < channels ? view.channel : -1;
        const canvas = plane(element("canvas", { className: "map" }), channelOf(seen[name], channel), width, height);
        const which = view.channel >= 0 && channel < 0 ? `mean, no channel ${view.channel}` : `${channels} of ${height}x${width}`;
        return figure(`${name.slice(5).replace(/\/y$/, "")} (${which})`, canvas);
      })
    );
  };
  const slider = element("input", {
    type: "range", min: -1, max: most - 1, value: view.channel,
    oninput: () => { view.channel = Number(slider.value); label.textContent = words(); draw(); },
  });
  const words = () => (view.channel < 0 ? "mean over channels" : `channel ${view.channel}`);
  const label = element("output", { textContent: words() });
  place.append(
    element("h4", { textContent: "Feature maps after each stage" }),
    element("label", { className: "slider" }, "Show ", slider, label), drawn
  );
  draw();
}
