// Where images come from besides the strip: a file, the camera, the pad. The newest wish wins: what is on its way then is dropped.

import { element } from "./draw.js";
import { dab, ofFile, ofPicture } from "./images.js";

export class Sources {
  // `show` takes pixels, `free` says whether the page can draw another frame, `original` returns the pixels to paint on.
  constructor(at, size, { show, say, free, original }) {
    Object.assign(this, { at, size, show, say, free, original, newest: 0, stream: null });
    at("file").addEventListener("change", () => { if (at("file").files[0]) this.take(at("file").files[0]); });
    for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
    document.addEventListener("drop", (event) => { if (event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]); });
    at("camera").addEventListener("click", () => (this.stream ? this.begin() : this.watch()));
    this.makePad(at("picture"));
  }

  // Begins another wish and returns its number; the camera stops.
  begin() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.at("camera").textContent = "Camera";
    return ++this.newest;
  }

  // A file.
  async take(file) {
    const wish = this.begin();
    try {
      const pixels = await ofFile(file, this.size);
      if (wish === this.newest) this.show(pixels);
    } catch (error) {
      if (wish === this.newest) this.say(error.message);
    }
  }

  // The camera, until another wish begins.
  async watch() {
    const wish = this.begin();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      const video = element("video", { srcObject: stream, muted: true, playsInline: true });
      await video.play();
      if (wish !== this.newest) throw new Error("not wanted any more");
      this.stream = stream;
      this.at("camera").textContent = "Stop the camera";
      const frame = () => {
        if (wish !== this.newest) return;
        if (this.free()) this.show(ofPicture(video, video.videoWidth, video.videoHeight, this.size));
        setTimeout(frame, 100);
      };
      frame();
    } catch (error) {
      for (const track of stream?.getTracks() ?? []) track.stop();
      if (wish === this.newest) this.say(`The camera cannot be used (${error.message ?? error}). Choose a file instead.`);
    }
  }

  makePad(pad) {
    const [channels, height, width] = this.size;
    let last = null;
    const paint = (event) => {
      const box = pad.getBoundingClientRect();
      const [x, y] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      const colour = channels === 1 ? [255] : [1, 3, 5].map((i) => parseInt(this.at("colour").value.slice(i, i + 2), 16));
      const steps = last ? Math.ceil(Math.hypot(x - last[0], y - last[1]) * 2) || 1 : 1;
      const pixels = this.original();
      for (let i = 1; i <= steps; i++) {
        const share = last ? i / steps : 1;
        const [fromX, fromY] = last ?? [x, y];
        dab(pixels, this.size, fromX + share * (x - fromX), fromY + share * (y - fromY), colour);
      }
      last = [x, y];
      this.show(pixels);
    };
    pad.addEventListener("pointerdown", (event) => { this.begin(); pad.setPointerCapture(event.pointerId); last = null; paint(event); });
    pad.addEventListener("pointermove", (event) => { if (event.buttons) paint(event); });
    this.at("colour-part").hidden = channels !== 3;
  }
}
