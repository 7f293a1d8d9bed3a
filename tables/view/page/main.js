// Starts the page, and shows what its address says: the grid or one image.

import { Grid } from "./grid.js";
import { open } from "./source.js";
import { link, read } from "./state.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);

function report(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function start() {
  report("");
  const source = await open();
  const [grid, viewer] = [new Grid(source), new Viewer(source)];
  $("home").textContent = source.runs.map((run) => run.name).join(" and ");
  $("home").title = source.runs.map((run) => run.uri).join(" and ");
  if (source.site && source.site.images !== source.runs[0].images) {
    const of = source.runs[0].images?.toLocaleString("en") ?? "all";
    report(`These pages have ${source.site.images.toLocaleString("en")} of ${of} images.`);
  }

  function render() {
    const one = Boolean(read().image);
    $("grid").hidden = $("filters").hidden = one;
    $("viewer").hidden = $("title").hidden = !one;
    $("home").href = link({ image: "", pin: "", view: "" });
    (one ? grid : viewer).leave();
    (one ? viewer : grid).render();
  }

  const turn = (step) => (read().image ? viewer : grid).turn(step);
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  addEventListener("hashchange", render);
  addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "Escape") target.blur();
    else if (target.matches("select, input:not([type=range])")) return;
    else if (target.matches("input[type=range]") && key.startsWith("Arrow")) return;
    if (read().image) {
      if (viewer.key(key)) event.preventDefault();
    } else if (key === "ArrowLeft" || key === "ArrowRight") turn(key === "ArrowLeft" ? -1 : 1);
    else if (key === "/") {
      event.preventDefault();
      $("text").focus();
    }
  });
  render();
}

start().catch((error) => report(`This page cannot be shown: ${error.message}`));
