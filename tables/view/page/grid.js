// The grid: thumbnails of images, with search, status and pages.

import { change, go, link, read } from "./state.js";

const TYPING_MS = 200; // after the last key, the search begins
const STEPS_WITHOUT_PICTURE = new Set(["fetch", "decode"]); // of failed images: these cannot be read

const $ = (id) => document.getElementById(id);

export class Grid {
  constructor(source) {
    this.source = source;
    this.search = new AbortController();
    this.first = null; // positions of the first image and of the next page
    this.next = null;
    let typing;
    $("text").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.filter(), TYPING_MS);
    });
    $("show").addEventListener("change", () => this.filter());
    $("filters").addEventListener("submit", (event) => event.preventDefault());
  }

  filter() {
    change({ text: $("text").value, show: $("show").value, at: "0.0" });
    this.render();
  }

  async render() {
    this.leave();
    const { signal } = (this.search = new AbortController());
    const { text, show, at } = read();
    if ($("text").value !== text) $("text").value = text;
    $("show").value = show;
    const run = this.source.runs[0];
    document.title = `${run.name}: maskmill`;
    this.first = this.next = null;
    this.update("reading");
    let cards = 0;
    $("grid").replaceChildren();
    try {
      for await (const page of this.source.pages({ at, text, show, signal })) {
        $("grid").append(...page.images.slice(cards).map((image) => this.card(image)));
        cards = page.images.length;
        this.first = page.images[0]?.at ?? null;
        this.next = page.done ? page.next : null;
        this.update(page.done ? this.place(page.images, text, show) : `searching, ${Math.floor(100 * page.searched)} %`);
      }
      if (!signal.aborted && cards === 0) this.say(text || show !== "all" ? "No image matches." : "No image is done yet.");
      if (!signal.aborted) $("grid").dataset.ready = "";
    } catch (error) {
      if (!signal.aborted) this.say(error.message);
    }
  }

  /** Ends a search that is going on. */
  leave() {
    this.search.abort();
    delete $("grid").dataset.ready;
  }

  say(text) {
    const line = document.createElement("p");
    line.textContent = text;
    $("grid").replaceChildren(line);
    this.update("");
  }

  place(images, text, show) {
    const [first, last] = [images[0], images.at(-1)];
    if (!first) return "";
    const total = this.source.site?.images ?? this.source.runs[0].images;
    if (text || show !== "all" || first.number === null || total === null) return `${images.length} images`;
    const number = (value) => (value + 1).toLocaleString("en");
    return `${number(first.number)} to ${number(last.number)} of ${total.toLocaleString("en")}`;
  }

  update(text) {
    $("place").textContent = text;
    $("previous").disabled = read().at === "0.0";
    $("next").disabled = !this.next;
  }

  async turn(step) {
    if (step === 1 && this.next) go({ at: this.next });
    if (step === -1 && read().at !== "0.0") {
      const { text, show, at } = read();
      let before = [];
      for await (const page of this.source.pages({ at, text, show, step: -1, limit: 61, signal: this.search.signal })) {
        before = page.images.filter((image) => image.at !== at);
      }
      go({ at: before.length < 60 ? "0.0" : before[59].at });
    }
  }

  card(image) {
    const card = document.createElement("a");
    card.className = "card";
    card.href = link({ image: image.id, pin: "", view: "" });
    card.title = image.id;
    const name = document.createElement("div");
    name.className = "name";
    const text = document.createElement("bdi");
    text.textContent = image.id;
    name.append(text);
    const facts = document.createElement("div");
    facts.className = image.status === "ok" ? "facts" : "facts bad";
    facts.textContent = image.status === "ok" ? `${image.masks} masks` : `${image.status}: ${image.step}`;
    card.append(this.thumbnail(image), name, facts);
    return card;
  }

  thumbnail(image) {
    const blank = document.createElement("div");
    blank.className = "blank";
    blank.textContent = image.error ?? "no picture";
    if (STEPS_WITHOUT_PICTURE.has(image.step)) return blank;
    const picture = document.createElement("img");
    picture.loading = "lazy";
    picture.alt = "";
    picture.src = this.source.thumbnail(0, image.at);
    picture.addEventListener("error", () => picture.replaceWith(blank));
    return picture;
  }
}
