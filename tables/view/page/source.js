// Where the data come from: the server of `maskmill view`, or the files of `maskmill view --site`.

const PAGE = 60; // images

async function load(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function reason(response) {
  const body = await response.json().catch(() => ({}));
  return body.error ?? `${response.status} ${response.statusText}`;
}

const json = async (path) => (await load(path)).json();

export async function open() {
  const { runs, site } = await json("data/runs.json");
  return site ? new Site(runs, site) : new Server(runs);
}

/** What the server and a site have in common. Runs are numbered: 0 and, in a comparison, 1. */
class Source {
  constructor(runs) {
    this.runs = runs;
  }
  /** One image with its masks. */
  image(run, at) {
    return json(`data/${run}/${at}.json`);
  }
  async picture(run, at) {
    return createImageBitmap(await (await load(`data/${run}/${at}.jpg`)).blob());
  }
  thumbnail(run, at) {
    return `data/${run}/thumbnail/${at}.jpg`;
  }
  /** The image before or after one, among those that match. `signal` ends the search. */
  async neighbour(at, step, text, show, signal) {
    for await (const part of this.pages({ at, step, text, show, limit: 2, signal })) {
      const other = part.images.find((image) => image.at !== at);
      if (other) return other;
    }
    return null;
  }
}

class Server extends Source {
  /** Parts of a page, as they are found: {images, next, searched: share of the run}. The last one is the whole page. */
  async *pages({ at, step = 1, text, show, limit = PAGE, signal }) {
    const images = [];
    for (let next = at; next; ) {
      const query = new URLSearchParams({ at: next, step, text, show, limit: limit - images.length });
      const part = await json(`data/0/page.json?${query}`);
      if (signal.aborted) return;
      images.push(...part.images);
      next = part.next;
      const full = images.length >= limit;
      const searched = next === null ? 1 : part.shards_before_next / this.runs[0].shards;
      yield { images, next, searched, done: full || next === null };
      if (full) return;
    }
  }
  find(run, id) {
    return json(`data/${run}/find.json?${new URLSearchParams({ id })}`);
  }
}

class Site extends Source {
  constructor(runs, site) {
    super(runs);
    this.site = site;
    this.lists = runs.map(() => []); // promises of images, by number of the list
  }
  list(run, number) {
    this.lists[run][number] ??= json(`data/${run}/list-${number}.json`);
    return this.lists[run][number];
  }
  async *all(run) {
    for (let number = 0; number < this.site.lists[run]; number++) yield* await this.list(run, number);
  }
  async *pages({ at, step = 1, text, show, limit = PAGE, signal }) {
    const matching = [];
    const wanted = text.toLowerCase();
    const key = place(at);
    for await (const image of this.all(0)) {
      if (signal.aborted) return;
      const past = (compare(place(image.at), key)) * step >= 0;
      if (past && image.id.toLowerCase().includes(wanted) && shown(image, show)) matching.push(image);
      if (step === 1 && matching.length > limit) break;
    }
    if (step === -1) matching.reverse();
    yield { images: matching.slice(0, limit), next: matching[limit]?.at ?? null, searched: 1, done: true };
  }
  async find(run, id) {
    for await (const image of this.all(run)) if (image.id === id) return image;
    return null;
  }
}

const place = (at) => at.split(".").map(Number);
const compare = (a, b) => a[0] - b[0] || a[1] - b[1];

function shown(image, show) {
  if (show === "empty") return image.status === "ok" && image.masks === 0;
  return show === "all" || image.status === show;
}
