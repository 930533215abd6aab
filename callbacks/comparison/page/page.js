"use strict";
// Draws the plots, sorts the table, and shows one dialogue at a time: players, words, pictures, and how blocks were filled.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts");
const dialogues = read("dialogues");
const colours = read("colours");
const root = document.documentElement;
const REFERENCE_COLOUR = "#8a8f98";
const STEP_COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const FILM_STEP_MS = 450;

/** Make an element with attributes and children; texts are never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// --- plots

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function layoutOf(chart) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  const { xaxis, yaxis, ...rest } = chart.layout;
  return {
    height: 440, margin: { l: 60, r: 16, t: 10, b: 50 }, hovermode: "closest", hoverlabel: { align: "left" },
    legend: { orientation: "h", y: -0.28, font: { size: 11 } },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 },
    ...rest, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
  };
}

function drawPlots() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    const chart = charts[place.dataset.chart];
    // Plotly writes into what it is given.
    Plotly.react(place, structuredClone(chart.data), layoutOf(chart), { responsive: true, displaylogo: false });
  }
}

/** Write the numbers of a plot as a table, for those who do not see it. */
function writeNumbers(place) {
  const { data } = charts[place.dataset.numbers];
  const rows = [];
  for (const trace of data) {
    if (trace.type === "heatmap") {
      trace.y.forEach((name, i) => trace.x.forEach((x, j) => rows.push([name, x, trace.z[i][j]])));
    } else if (trace.hoverinfo !== "skip") {
      trace.x.forEach((x, i) => rows.push(trace.orientation === "h" ? [trace.y[i], trace.name, x] : [trace.name, x, trace.y[i]]));
    }
  }
  const show = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : value ?? "–");
  const body = rows.map((row) => make("tr", {}, ...row.map((value) => make("td", { text: show(value) }))));
  place.append(make("table", {}, make("tbody", {}, ...body)));
}

// --- dark and light

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  drawPlots();
});
prefersDark.addEventListener("change", drawPlots);

// --- sorting

function sortBy(button) {
  const head = button.closest("th");
  const table = button.closest("table");
  const isDescending = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  const column = Number(button.dataset.column);
  const valueOf = (row) => row.children[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // rows without a value stay at the end
    const order = column === 0 ? x.localeCompare(y) : Number(x) - Number(y);
    return isDescending ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}
for (const button of document.querySelectorAll(".sortable button[data-column]")) {
  button.addEventListener("click", () => sortBy(button));
}

// --- dialogues

function showWords(words) {
  const pieces = words.map(({ kind, said, heard }) => {
    if (kind === "equal") return make("span", { text: `${heard} ` });
    if (kind === "substitution") {
      return make("span", { class: kind, title: `${said} was heard as ${heard}` }, make("del", { text: said }), make("ins", { text: heard }), " ");
    }
    if (kind === "deletion") return make("span", {}, make("del", { class: kind, title: "not heard", text: said }), " ");
    return make("span", {}, make("ins", { class: kind, title: "heard, but not said", text: heard }), " ");
  });
  return make("p", { class: "words" }, ...(pieces.length ? pieces : [make("em", { text: "nothing was heard" })]));
}

function showMedia(media, name, chunkSeconds) {
  if (!media) return make("p", { text: "No sound." });
  const audio = make("audio", { controls: true, preload: "metadata", src: media.audio, "aria-label": `Play ${name}` });
  const playhead = make("b");
  const mel = make("div", { class: "mel" }, make("img", { src: media.mel, alt: `Mel spectrogram of ${name}, ${media.seconds.toFixed(2)} seconds` }));
  if (chunkSeconds) {
    for (let at = chunkSeconds; at < media.seconds; at += chunkSeconds) {
      mel.append(make("i", { style: `left: ${(100 * at) / media.seconds}%` }));
    }
  }
  mel.append(playhead);
  const follow = () => {
    playhead.style.left = `${Math.min(100, (100 * audio.currentTime) / media.seconds)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener("seeked", follow);
  return make("div", {}, audio, mel);
}

/** Give the colour of a step as [red, green, blue], from the first step to the last. */
function stepColour(step, numSteps) {
  const at = numSteps > 1 ? (step / (numSteps - 1)) * (STEP_COLOURS.length - 1) : 2;
  const low = Math.min(Math.floor(at), STEP_COLOURS.length - 2);
  return STEP_COLOURS[low].map((value, i) => Math.round(value + (at - low) * (STEP_COLOURS[low + 1][i] - value)));
}

function paint(cell, step, numSteps) {
  const [red, green, blue] = stepColour(step, numSteps);
  cell.style.background = `rgb(${red}, ${green}, ${blue})`;
  cell.style.color = 0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#111" : "#fff";
}

/** Show the tokens of a block as they stand after some steps. */
function showBlock(block, cells, numDone, numSteps) {
  const corrections = block.order.filter((_, i) => block.draft[i] !== null);
  const draftEnd = corrections.length ? Math.min(...corrections) : Infinity;
  cells.forEach((cell, i) => {
    const isCorrected = block.draft[i] !== null;
    const isThere = block.order[i] < numDone;
    const isDraft = !isThere && isCorrected && numDone >= draftEnd;
    cell.className = isThere ? (isCorrected ? "corrected" : "") : isDraft ? "draft" : "masked";
    cell.textContent = isThere ? block.tokens[i] : isDraft ? block.draft[i] : "";
    cell.style.background = cell.style.color = "";
    if (isThere) paint(cell, block.order[i], numSteps);
    const what = isCorrected ? `corrected in step ${block.order[i] + 1}, before it ${block.draft[i]}` : `step ${block.order[i] + 1}`;
    cell.title = isThere ? `token ${block.tokens[i]}, ${what}` : isDraft ? `draft ${block.draft[i]}` : "masked";
  });
}

function showFilm(film, name) {
  const numSteps = Math.max(...film.map((block) => block.steps));
  const sliders = [];
  const blocks = film.map((block, number) => {
    const cells = block.tokens.map(() => make("li"));
    const output = make("output");
    const slider = make("input", { type: "range", min: 0, max: block.steps, value: block.steps, "aria-label": `${name}, block ${number + 1}: steps done` });
    const update = () => {
      const numDone = Number(slider.value);
      showBlock(block, cells, numDone, numSteps);
      const numThere = block.order.filter((step) => step < numDone).length;
      output.textContent = `step ${numDone} of ${block.steps}`;
      slider.setAttribute("aria-valuetext", `step ${numDone} of ${block.steps}, ${numThere} of ${block.tokens.length} tokens`);
    };
    slider.addEventListener("input", update);
    update();
    sliders.push(slider);
    const head = make("label", {}, make("span", { text: `block ${number + 1}` }), slider, output);
    return make("div", { class: "block" }, head, make("ol", { class: "tokens", "aria-label": `Tokens of block ${number + 1}` }, ...cells));
  });
  const set = (value) => sliders.forEach((slider) => {
    slider.value = Math.min(value, Number(slider.max));
    slider.dispatchEvent(new Event("input"));
  });
  const all = make("input", { type: "range", min: 0, max: numSteps, value: numSteps, "aria-label": `${name}, all blocks: steps done`, oninput: () => set(Number(all.value)) });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play the film"; };
  const play = make("button", { type: "button", text: "Play the film", onclick: () => {
    if (timer !== null) return stop();
    all.value = 0;
    set(0);
    play.textContent = "Stop";
    timer = setInterval(() => {
      all.value = Number(all.value) + 1;
      set(Number(all.value));
      if (Number(all.value) >= numSteps || !all.isConnected) stop();
    }, FILM_STEP_MS);
  } });
  const legend = make("div", { class: "legend" });
  const shown = [...new Set([0, Math.floor((numSteps - 1) / 2), numSteps - 1])];
  for (const step of shown) {
    legend.append(make("span", {}, make("i", { style: `background: rgb(${stepColour(step, numSteps)})` }), `step ${step + 1}`));
  }
  if (film.some((block) => block.draft.some((old) => old !== null))) {
    legend.append(make("span", {}, make("i", { style: "outline: 2px solid var(--bad); outline-offset: -2px" }), "corrected; its draft shows once drafting has ended"));
  }
  return make("details", { class: "film" }, make("summary", { text: "How its blocks were filled" }),
    make("div", { class: "all" }, play, make("span", { text: "all blocks" }), all), legend, ...blocks);
}

function showReply(reply, severalRuns) {
  const title = severalRuns ? `${reply.name}, ${reply.run}` : reply.name;
  const wait = reply.first_chunk_ms == null ? null : make("small", { text: `first chunk ${Math.round(reply.first_chunk_ms)} ms` });
  const card = make("article", { class: "card", "aria-label": title, style: `--talker: ${colours[reply.talker] ?? REFERENCE_COLOUR}` },
    make("h4", {}, make("span", { text: title }), wait), showMedia(reply.media, title, reply.chunk_s), showWords(reply.words));
  if (!reply.is_gold) card.append(make("p", { class: "own-text", text: `The thinker wrote: ${reply.text}` }));
  if (reply.film && reply.film.length) card.append(showFilm(reply.film, title));
  return card;
}

function showDialogue(dialogue) {
  for (const button of document.querySelectorAll("#choice button")) {
    button.setAttribute("aria-pressed", String(button.dataset.id === dialogue.key));
  }
  const asked = make("div", { class: "asked" }, make("h3", { text: "Query" }), showMedia(dialogue.query, "the query"));
  if (dialogue.transcript) asked.append(make("p", { text: dialogue.transcript }));
  asked.append(make("p", {}, make("b", { text: "Gold reply: " }), dialogue.gold));
  const severalRuns = new Set(dialogue.replies.map((reply) => reply.run)).size > 1;
  const cards = dialogue.replies.map((reply) => showReply(reply, severalRuns));
  document.getElementById("dialogue").replaceChildren(asked, make("div", { class: "cards" }, ...cards));
}

function offerDialogues() {
  const choice = document.getElementById("choice");
  const groups = { "Worst first": (one) => one.chosen.includes("worst"), "Drawn at random": (one) => !one.chosen.includes("worst") };
  dialogues.forEach((dialogue, index) => { dialogue.key = String(index); });
  for (const [title, belongs] of Object.entries(groups)) {
    const group = dialogues.filter(belongs);
    if (!group.length) continue;
    choice.append(make("h3", { text: title }));
    for (const dialogue of group) {
      const kind = dialogue.kind ? `, ${dialogue.kind}` : "";
      const text = `${dialogue.id}: ${Math.round(100 * dialogue.word_error_rate)} % wrong${kind}`;
      choice.append(make("button", { type: "button", "data-id": dialogue.key, text, onclick: () => showDialogue(dialogue) }));
    }
  }
  if (dialogues.length) showDialogue(dialogues[0]);
  else choice.append(make("p", { text: "This comparison kept no audio." }));
}

drawPlots();
document.querySelectorAll("[data-numbers]").forEach(writeNumbers);
offerDialogues();
