// The page: it joins image, nets and drawings, and draws again when one of them changes.

import { unpack } from "./bytes.js";
import { showCosts } from "./cost.js";
import { arrowKeys, element, mark } from "./draw.js";
import { altered, show, summed } from "./images.js";
import { insideCondconv } from "./inside_condconv.js";
import { insideInvolution } from "./inside_involution.js";
import { insideMaps } from "./inside_maps.js";
import { insidePde } from "./inside_pde.js";
import { insidePuppet } from "./inside_puppet.js";
import { insideRing } from "./inside_ring.js";
import { Net } from "./nets.js";
import { loadRuntime } from "./runtime.js";
import { Sources } from "./sources.js";
import { CALM, keepState, OWN, readState } from "./state.js";
import { Trade } from "./trade.js";

const INSIDE = { ring: insideRing, puppet: insidePuppet, pde: insidePde, condconv: insideCondconv, involution: insideInvolution };
const SIDES = ["left", "right"];
const views = {}; // what is chosen inside each net
const at = (id) => document.getElementById(id);
const imageSize = () => page.inputSize.reduce((a, b) => a * b);
let page, state, strip, original, trade, sources;
let nets = [];

async function start() {
  document.documentElement.dataset.ready = "no";
  page = JSON.parse(at("facts").textContent);
  state = readState(page);
  strip = page.images.count ? summed(await unpack("images"), page.inputSize[2]) : new Uint8Array();
  const runtime = await loadRuntime(page.runtime);
  nets = page.nets.map((facts, place) => new Net(facts, place, page, runtime));
  showCosts(at("costs"), nets);
  trade = new Trade(at("trade"), page, nets, (net) => choose(net.facts.method === "plain" ? "left" : "right", net.place));
  makeStrip();
  makeChoices();
  makeSliders();
  makeButtons();
  sources = new Sources(at, page.inputSize, { show: own, say, free: () => !drawing, original: () => original });
  await opened();
}

// Shows what the address asks for.
async function opened() {
  const wanted = readState(page);
  Object.assign(state, wanted);
  for (const side of SIDES) at(`${side}-net`).value = state[side];
  showSliders();
  if (page.images.count) pick(wanted.image === OWN ? 0 : wanted.image);
  else clear();
  if (wanted.image !== OWN) return drawn;
  const begun = wished;
  await drawn;
  if (wished === begun) say("The link was made with a file, a drawing or a picture of the camera, which only its maker has.");
}

// ---- drawing again: the newest wish wins, so a dragged slider never waits for what is out of date

let [wished, drawing, drawn] = [0, false, Promise.resolve()];

function redraw() {
  wished++;
  document.documentElement.dataset.ready = "no";
  if (drawing) return;
  drawing = true;
  drawn = (async () => {
    try {
      let done;
      do {
        done = wished;
        await drawOnce();
        await new Promise(requestAnimationFrame);
      } while (done !== wished);
      say("");
    } catch (error) {
      say(error.message);
    } finally {
      drawing = false;
      document.documentElement.dataset.ready = "yes";
    }
  })();
}

async function drawOnce() {
  const pixels = altered(original, page.inputSize, state);
  show(at("picture"), pixels, page.inputSize);
  for (const side of SIDES) {
    const found = await nets[state[side]].classify(pixels);
    showClasses(side, nets[state[side]], found);
  }
  agreement();
  trade.draw();
  for (const side of SIDES) await showInside(side, nets[state[side]], pixels);
  keepState(state, page);
}

function showClasses(side, net, { probabilities, ms, best }) {
  const order = probabilities.map((share, k) => k).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  const rows = order.map((k) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * probabilities[k]}%`;
    return element("li", { className: k === best ? "best" : "" },
      element("span", { className: "name", textContent: page.classes[k] }), element("span", { className: "track" }, bar),
      element("span", { className: "share", textContent: `${(100 * probabilities[k]).toFixed(1)} %` }));
  });
  const list = at(`${side}-classes`);
  list.replaceChildren(...rows);
  list.dataset.probabilities = JSON.stringify(probabilities);
  at(`${side}-time`).textContent = net.ms > 0
    ? `${ms.toFixed(1)} ms here; mean ${net.ms.toFixed(1)} ms, ${Math.round(1000 / net.ms)} images a second`
    : "less time than this browser's clock can tell";
}

function agreement() {
  const [a, b] = SIDES.map((side) => at(`${side}-classes`).querySelector(".best .name").textContent);
  const truth = Number.isInteger(state.image) && page.images.labels.length ? ` The image is labelled ${page.classes[page.images.labels[state.image]]}.` : "";
  const words = (a === b ? `Both say ${a}.` : `They disagree: ${a} and ${b}.`) + truth;
  if (at("agreement").textContent !== words) at("agreement").textContent = words; // a screen reader reads each change
}

async function showInside(side, net, pixels) {
  const place = at(`${side}-inside`);
  const [seen, facts] = await Promise.all([net.look(pixels), net.inside()]);
  const view = (views[`${side} ${net.place}`] ??= { channel: -1 });
  const made = element("div");
  for (const [method, given] of Object.entries(facts)) INSIDE[method]?.(made, net, seen, view, given, page);
  insideMaps(made, net, seen, view);
  const had = place.contains(document.activeElement) ? [...place.querySelectorAll("input,select,button,[tabindex]")].indexOf(document.activeElement) : -1;
  place.replaceChildren(...made.childNodes);
  if (had >= 0) place.querySelectorAll("input,select,button,[tabindex]")[had]?.focus();
}

// ---- what a person can do

function choose(side, place) {
  state[side] = place;
  at(`${side}-net`).value = place;
  redraw();
}

function pick(number) {
  sources.begin();
  const size = imageSize();
  state.image = number;
  original = strip.slice(number * size, (number + 1) * size);
  mark(at("strip"), number);
  redraw();
}

function own(pixels, name = OWN) {
  state.image = name;
  original = pixels;
  mark(at("strip"), -1);
  redraw();
}

function clear() {
  sources.begin();
  own(new Uint8Array(imageSize()).fill(page.inputSize[0] === 1 ? 0 : 128), null);
}

function makeChoices() {
  for (const side of SIDES) {
    const select = at(`${side}-net`);
    page.nets.forEach((net, i) => select.append(element("option", { value: i, textContent: net.name })));
    select.addEventListener("change", () => choose(side, Number(select.value)));
  }
}

function makeStrip() {
  const size = imageSize();
  for (let i = 0; i < page.images.count; i++) {
    const canvas = element("canvas");
    show(canvas, strip.slice(i * size, (i + 1) * size), page.inputSize);
    const label = page.images.labels.length ? page.classes[page.images.labels[i]] : "";
    at("strip").append(element("button", { type: "button", role: "radio", tabIndex: -1, ariaLabel: `test image ${i} ${label}`, title: label, onclick: () => pick(i) }, canvas));
  }
  arrowKeys(at("strip"), pick);
  at("strip-part").hidden = !page.images.count;
}

function makeSliders() {
  for (const key of Object.keys(CALM)) {
    at(key).addEventListener("input", () => { state[key] = Number(at(key).value); showSliders(); redraw(); });
  }
  at("reset").addEventListener("click", () => { Object.assign(state, CALM); showSliders(); redraw(); });
}

function showSliders() {
  for (const key of Object.keys(CALM)) {
    at(key).value = state[key];
    at(`${key}-value`).textContent = state[key].toFixed(key === "noise" ? 0 : 2);
  }
}

function makeButtons() {
  at("clear").addEventListener("click", clear);
  at("disagree").addEventListener("click", firstDisagreement);
  at("copy").addEventListener("click", async () => {
    await copied(page.command);
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy the command"; }, 1500);
  });
  addEventListener("hashchange", opened);
}

async function copied(words) {
  try {
    await navigator.clipboard.writeText(words);
  } catch { // an older browser, or a page that may not
    const range = document.createRange();
    range.selectNodeContents(at("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
}

// The first test image on which the two nets differ; if there is none, the least blur of this image at which they do.
async function firstDisagreement() {
  const wish = sources.begin();
  await drawn;
  const begun = wished;
  const size = imageSize();
  const pair = SIDES.map((side) => nets[state[side]]);
  const differ = async (pixels) => {
    const [a, b] = [await pair[0].classify(pixels, { timed: false }), await pair[1].classify(pixels, { timed: false })];
    if (wish !== sources.newest || wished !== begun) throw new Superseded();
    return a.best !== b.best;
  };
  try {
    for (let i = 0; i < page.images.count; i++) {
      if (await differ(altered(strip.slice(i * size, (i + 1) * size), page.inputSize, state))) return pick(i);
    }
    for (let blur = 0.1; blur <= 3; blur += 0.1) {
      if (!(await differ(altered(original, page.inputSize, { ...state, blur })))) continue;
      state.blur = Number(blur.toFixed(1));
      showSliders();
      return redraw();
    }
    say("They agree on every image of the strip, and on this image at any blur.");
  } catch (error) {
    if (!(error instanceof Superseded)) say(error.message);
  }
}

class Superseded extends Error {}

function say(words) {
  at("message").textContent = words;
  at("message").hidden = !words;
}

start().catch((error) => {
  say(error.message);
  document.documentElement.dataset.ready = "failed";
});
