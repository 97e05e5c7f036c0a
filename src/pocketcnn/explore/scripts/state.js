// What is chosen, in the part of the address after #, so that a finding can be sent as a link.

const NUMBERS = { blur: [0, 3], contrast: [0, 2], noise: [0, 80] };
export const CALM = { blur: 0, contrast: 1, noise: 0 };
export const OWN = "own"; // an image that is not in the page: a file, a drawing, a picture of the camera

export function readState(page) {
  const given = new URLSearchParams(location.hash.slice(1));
  const names = page.nets.map((net) => net.name);
  const plain = page.nets.findIndex((net) => net.method === "plain");
  const small = page.nets.findIndex((net) => net.method !== "plain");
  const net = (key, usual) => (names.includes(given.get(key)) ? names.indexOf(given.get(key)) : Math.max(0, usual));
  const state = { left: net("left", plain), right: net("right", small), ...CALM };
  for (const [key, [low, high]] of Object.entries(NUMBERS)) {
    const value = Number(given.get(key));
    if (given.has(key) && value >= low && value <= high) state[key] = value;
  }
  const image = Number(given.get("image") ?? 0);
  state.image = Number.isInteger(image) && image >= 0 && image < page.images.count ? image : given.get("image") === OWN ? OWN : 0;
  return state;
}

let waiting = null;

// Writes the state into the address once it has been still for a moment: browsers limit how often a page may.
export function keepState(state, page) {
  const words = new URLSearchParams({ left: page.nets[state.left].name, right: page.nets[state.right].name });
  if (state.image !== null) words.set("image", state.image);
  for (const key of Object.keys(CALM)) if (state[key] !== CALM[key]) words.set(key, state[key]);
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    try {
      if (location.hash !== `#${words}`) history.replaceState(null, "", `#${words}`);
    } catch { // the browser refuses; the page goes on without
    }
  }, 300);
}
