// The page: it joins image, nets and drawings, and draws again when one of them changes.

import { unpack } from "./bytes.js";
import { showCosts } from "./cost.js";
import { element } from "./draw.js";
import { altered, dab, ofFile, ofPicture, show, summed } from "./images.js";
import { insideCondconv } from "./inside_condconv.js";
import { insideInvolution } from "./inside_involution.js";
import { insideMaps } from "./inside_maps.js";
import { insidePde } from "./inside_pde.js";
import { insidePuppet } from "./inside_puppet.js";
import { insideRing } from "./inside_ring.js";
import { Net } from "./nets.js";
import { loadRuntime } from "./runtime.js";
import { CALM, readState, writeState } from "./state.js";
import { Trade } from "./trade.js";

const INSIDE = { ring: insideRing, puppet: insidePuppet, pde: insidePde, condconv: insideCondconv, involution: insideInvolution };
const SIDES = ["left", "right"];
const page = JSON.parse(document.getElementById("facts").textContent);
const state = readState(page);
const views = {}; // what is chosen inside each net
const at = (id) => document.getElementById(id);
let [nets, strip, original, trade, camera] = [[], null, null, null, null];

async function start() {
  document.documentElement.dataset.ready = "no";
  strip = page.images.count ? summed(await unpack("images"), page.inputSize[2]) : new Uint8Array();
  const runtime = await loadRuntime(page.runtime);
  nets = page.nets.map((facts, place) => new Net(facts, place, page, runtime));
  showCosts(at("costs"), nets);
  trade = new Trade(at("trade"), page, nets, (net) => choose(net.facts.method === "plain" ? "left" : "right", net.place));
  makeStrip();
  makeChoices();
  makeSliders();
  makeSources();
  makePad();
  if (page.images.count) pick(state.image);
  else clear();
  await drawn;
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
  if (state.image !== null || location.hash) writeState(state, page);
  const pixels = altered(original, page.inputSize, state);
  show(at("picture"), pixels, page.inputSize);
  for (const side of SIDES) {
    const found = await nets[state[side]].classify(pixels);
    showClasses(side, nets[state[side]], found);
  }
  agreement();
  trade.draw();
  for (const side of SIDES) await showInside(side, nets[state[side]], pixels);
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
  const median = net.median;
  at(`${side}-time`).textContent = `${ms.toFixed(1)} ms here; median ${median.toFixed(1)} ms, ${Math.round(1000 / median)} images a second`;
}

function agreement() {
  const [a, b] = SIDES.map((side) => at(`${side}-classes`).querySelector(".best .name").textContent);
  const truth = state.image !== null && page.images.labels.length ? ` The image is labelled ${page.classes[page.images.labels[state.image]]}.` : "";
  at("agreement").textContent = (a === b ? `Both say ${a}.` : `They disagree: ${a} and ${b}.`) + truth;
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
  stopCamera();
  const size = page.inputSize.reduce((a, b) => a * b);
  state.image = number;
  original = strip.slice(number * size, (number + 1) * size);
  [...at("strip").children].forEach((button, i) => {
    button.setAttribute("aria-checked", i === number);
    button.tabIndex = i === number ? 0 : -1;
  });
  redraw();
}

function own(pixels) {
  state.image = null;
  original = pixels;
  for (const button of at("strip").children) button.setAttribute("aria-checked", false);
  redraw();
}

function clear() {
  stopCamera();
  const [channels, height, width] = page.inputSize;
  own(new Uint8Array(channels * height * width).fill(channels === 1 ? 0 : 128));
}

function makeChoices() {
  for (const side of SIDES) {
    const select = at(`${side}-net`);
    page.nets.forEach((net, i) => select.append(element("option", { value: i, textContent: net.name, selected: i === state[side] })));
    select.addEventListener("change", () => choose(side, Number(select.value)));
  }
}

function makeStrip() {
  const size = page.inputSize.reduce((a, b) => a * b);
  for (let i = 0; i < page.images.count; i++) {
    const canvas = element("canvas");
    show(canvas, strip.slice(i * size, (i + 1) * size), page.inputSize);
    const label = page.images.labels.length ? page.classes[page.images.labels[i]] : "";
    at("strip").append(element("button", { type: "button", role: "radio", tabIndex: -1, ariaLabel: `test image ${i} ${label}`, title: label, onclick: () => pick(i) }, canvas));
  }
  at("strip").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    pick(((state.image ?? 0) + step + page.images.count) % page.images.count);
    at("strip").children[state.image].focus();
  });
  at("strip-part").hidden = !page.images.count;
}

function makeSliders() {
  for (const key of Object.keys(CALM)) {
    const [slider, label] = [at(key), at(`${key}-value`)];
    const tell = () => { label.textContent = state[key].toFixed(key === "noise" ? 0 : 2); };
    slider.value = state[key];
    tell();
    slider.addEventListener("input", () => { state[key] = Number(slider.value); tell(); redraw(); });
  }
  at("reset").addEventListener("click", () => {
    Object.assign(state, CALM);
    for (const key of Object.keys(CALM)) { at(key).value = CALM[key]; at(`${key}-value`).textContent = CALM[key].toFixed(key === "noise" ? 0 : 2); }
    redraw();
  });
}

function makeSources() {
  const take = async (file) => {
    try {
      own(await ofFile(file, page.inputSize));
    } catch (error) {
      say(error.message);
    }
  };
  at("file").addEventListener("change", () => { stopCamera(); if (at("file").files[0]) take(at("file").files[0]); });
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    stopCamera();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  at("clear").addEventListener("click", clear);
  at("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
  at("disagree").addEventListener("click", firstDisagreement);
  at("copy").addEventListener("click", async () => {
    await copied(page.command);
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy the command"; }, 1500);
  });
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

async function startCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    const video = element("video", { srcObject: stream, muted: true, playsInline: true });
    await video.play();
    camera = stream;
    at("camera").textContent = "Stop the camera";
    const frame = () => {
      if (camera !== stream) return;
      if (!drawing) own(ofPicture(video, video.videoWidth, video.videoHeight, page.inputSize));
      setTimeout(frame, 100);
    };
    frame();
  } catch (error) {
    say(`The camera cannot be used (${error.message ?? error}). Choose a file instead.`);
  }
}

function stopCamera() {
  if (!camera) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  at("camera").textContent = "Camera";
}

function makePad() {
  const pad = at("picture");
  let last = null;
  const spot = (event) => {
    const box = pad.getBoundingClientRect();
    const [, height, width] = page.inputSize;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const paint = (event) => {
    const [x, y] = spot(event);
    const colour = page.inputSize[0] === 1 ? [255] : [1, 3, 5].map((i) => parseInt(at("colour").value.slice(i, i + 2), 16));
    const steps = last ? Math.ceil(Math.hypot(x - last[0], y - last[1]) * 2) || 1 : 1;
    for (let i = 1; i <= steps; i++) {
      const share = last ? i / steps : 1;
      const [fromX, fromY] = last ?? [x, y];
      dab(original, page.inputSize, fromX + share * (x - fromX), fromY + share * (y - fromY), colour);
    }
    last = [x, y];
    own(original);
  };
  pad.addEventListener("pointerdown", (event) => { stopCamera(); pad.setPointerCapture(event.pointerId); last = null; paint(event); });
  pad.addEventListener("pointermove", (event) => { if (event.buttons) paint(event); });
  at("colour-part").hidden = page.inputSize[0] !== 3;
}

// The first test image on which the two nets differ; if there is none, the least blur of this image at which they do.
async function firstDisagreement() {
  const size = page.inputSize.reduce((a, b) => a * b);
  const both = (pixels) => Promise.all(SIDES.map(async (side) => (await nets[state[side]].classify(pixels)).best));
  await drawn;
  for (let i = 0; i < page.images.count; i++) {
    const [a, b] = await both(altered(strip.slice(i * size, (i + 1) * size), page.inputSize, state));
    if (a !== b) { pick(i); return; }
  }
  for (let blur = 0.1; blur <= 3; blur += 0.1) {
    const [a, b] = await both(altered(original, page.inputSize, { ...state, blur }));
    if (a !== b) {
      state.blur = Number(blur.toFixed(1));
      at("blur").value = state.blur;
      at("blur-value").textContent = state.blur.toFixed(2);
      redraw();
      return;
    }
  }
  say("They agree on every image of the strip, and on this image at any blur.");
}

function say(words) {
  at("message").textContent = words;
  at("message").hidden = !words;
}

start().catch((error) => {
  say(error.message);
  document.documentElement.dataset.ready = "failed";
});
