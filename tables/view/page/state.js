// The state of the page. It lives in the address, after the #, so that every state has a link.

const DEFAULTS = {
  image: "", // the id of the image; empty: the grid
  text: "", show: "all", at: "0.0", // of the grid: search, status, position of the first image
  iou: 0, stability: 0, min: 0, max: 1, // lowest scores; area as a share of the image
  pin: "", // run and id of the pinned mask, as in 0:12
  masks: 1, // 0: hidden
  view: "", // centre and zoom, as in 0.5,0.5,2; empty: the whole image
};

const WRITING_MS = 100; // browsers ignore an address that changes hundreds of times in some seconds

let current = parse();
let writing;
addEventListener("hashchange", () => {
  clearTimeout(writing);
  current = parse();
});

function parse() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = {};
  for (const [key, initial] of Object.entries(DEFAULTS)) {
    const text = given.get(key);
    const value = typeof initial === "number" && text !== null ? Number(text) : text;
    state[key] = value === null || Number.isNaN(value) ? initial : value; // what makes no sense is left out
  }
  return state;
}

export function read() {
  return { ...current };
}

/** The address of the current state with some changes. */
export function link(changes) {
  const state = { ...current, ...changes };
  const params = new URLSearchParams();
  for (const [key, initial] of Object.entries(DEFAULTS)) {
    if (state[key] !== initial) params.set(key, typeof initial === "number" ? +state[key].toPrecision(6) : state[key]);
  }
  return `#${params}`;
}

/** Changes the state; the Back button does not return to the one before. */
export function change(changes) {
  current = { ...current, ...changes };
  clearTimeout(writing);
  writing = setTimeout(write, WRITING_MS);
}

/** Goes to another state; the Back button returns. */
export function go(changes) {
  write();
  location.hash = link(changes);
}

function write() {
  clearTimeout(writing);
  history.replaceState(null, "", link({}));
}
