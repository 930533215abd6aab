// The page: what people do becomes messages, what the server tells becomes sight and sound.

import { Connection } from "./connection.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { ReplyView } from "./reply_view.js";

const $ = (id) => document.getElementById(id);
const selects = [$("decoding-0"), $("decoding-1")];
const STATES = { connecting: "connecting", ready: "ready", lost: "connection lost, trying again", refused: "a token is needed" };

let welcome = null;
let turn = 0; // the newest query's number, as the server counts
let awaited = false; // whether a query was sent whose number is not known yet
let askedAt = 0; // when the query was complete, on the page's clock
let replies = []; // by index of the decoding: {view, id, samples, startedAt}
let isTalking = false;
const microphone = new Microphone();

// What happened, for tests and for people who look.
const counters = { played: 0, underruns: 0, finished: 0, firstSoundMs: [], arrivalMs: [], errors: [] };
globalThis.live = { counters };

const player = new Player(({ what, id, played, underruns }) => {
  const reply = replies.find((one) => one.id === id);
  if (!reply) return;
  counters.played += played - reply.played;
  counters.underruns += underruns - reply.underruns;
  Object.assign(reply, { played, underruns });
  reply.view.setClock("underruns", String(underruns));
  if (what === "started" && !reply.hasSounded) {
    reply.hasSounded = true;
    const now = performance.now();
    const buffer = now - Math.max(reply.arrivedAt, reply.mayStartAt ?? 0);
    reply.view.setClock("sound", `${Math.round(reply.arrivedAt - reply.beganAt + buffer)} ms`);
    reply.view.setClock("buffer", `${Math.round(buffer)} ms`);
    counters.firstSoundMs.push(reply.arrivedAt - reply.beganAt + buffer);
    counters.arrivalMs.push(reply.arrivedAt - reply.beganAt);
  }
  if (what === "finished") {
    counters.finished += 1;
    reply.view.setState(reply.isWhole === false ? "cut off" : "heard");
    reply.view.again.disabled = false;
    const next = replies[replies.indexOf(reply) + 1];
    if (next) next.mayStartAt = performance.now();
    showBusy();
  }
});

const connection = new Connection({
  onMessage: (message) => handlers[message.type]?.(message),
  onAudio: ({ turn: of, index, samples }) => {
    const reply = replies[index];
    if (of !== turn || !reply) return;
    reply.arrivedAt ??= performance.now();
    reply.samples.push(samples);
    player.add(reply.id, samples);
  },
  onState: (state) => {
    $("connection").dataset.state = state;
    $("connection").textContent = STATES[state];
    for (const button of document.querySelectorAll("#talk, form button")) button.disabled = state !== "ready";
    if (state === "ready") notice("");
    if (state === "refused") notice("This server asks for a token: open the address that it printed, with #token=… at its end.");
    if (state === "lost") {
      endTalking(false);
      completeAll("lost");
    }
  },
});

const handlers = {
  welcome(message) {
    welcome = message;
    turn = 0;
    $("model").textContent = message.model;
    fill(selects[0], message.decodings.map(({ name }) => [name, name]), "mdm_4");
    fill(selects[1], [["", "none"], ...message.decodings.map(({ name }) => [name, name])], "");
    fill($("query"), message.queries.map(({ id, text }) => [id, text]), "");
    $("test").hidden = message.queries.length === 0;
    $("text").maxLength = message.limits.text_characters;
    $("heard-by").textContent = message.heard_by ? `It heard (${message.heard_by})` : "It heard";
    $("kinds").hidden = message.kinds.length === 0;
    $("kinds").open = matchMedia("(min-width: 52rem)").matches;
    $("kind-list").replaceChildren(...message.kinds.map(kindButton));
    globalThis.live.isReady = true;
  },
  listening(message) {
    turn = message.turn;
  },
  query_end(message) {
    if (message.why === "silence") {
      askedAt = performance.now();
      endTalking(false);
    }
  },
  query(message) {
    turn = message.turn;
    awaited = false;
    $("asked").textContent = message.text ?? `spoken, ${message.audio_s.toFixed(1)} s`;
  },
  queued({ index, place }) {
    replies[index]?.view.setState(place === 1 ? "next in line" : `${place} in line`);
  },
  begin({ turn: of, index }) {
    const reply = replies[index];
    if (!reply) return;
    turn = of;
    reply.id = `${of}.${index}`;
    reply.beganAt = index === 0 ? askedAt : performance.now();
    reply.view.setState("speaks", true);
    player.begin(reply.id);
  },
  text({ turn: of, index, text }) {
    if (of === turn) replies[index]?.view.setText(text);
  },
  block(message) {
    if (message.turn === turn) replies[message.index]?.view.addBlock(message);
  },
  first_chunk({ turn: of, index, stages_ms, ms }) {
    const reply = replies[index];
    if (of !== turn || !reply) return;
    reply.view.setStages(stages_ms);
    // a second reply begins when the server does; messages that this page reads late would make it look early
    if (index > 0) reply.beganAt = reply.arrivedAt - ms;
  },
  reply(message) {
    const reply = replies[message.index];
    if (message.turn !== turn || !reply) return;
    reply.isWhole = message.is_whole;
    reply.view.setText(message.text);
    reply.view.setSpans(message.spans);
    reply.view.setClock("rtf", message.rtf?.toFixed(4) ?? "–");
    reply.view.setClock("passes", message.passes_per_block?.toFixed(2) ?? "–");
    complete(reply, "complete");
  },
  heard({ turn: of, text }) {
    if (of === turn) $("heard").textContent = text ?? "–";
  },
  stopped: showBusy,
  done: showBusy,
  error({ message }) {
    counters.errors.push(message);
    notice(message);
    endTalking(false);
    completeAll("failed");
    showBusy();
  },
};

function complete(reply, state) {
  reply.isComplete = true;
  reply.view.setState(state);
  if (reply.id) player.complete(reply.id);
  showBusy();
}

function completeAll(state) {
  for (const reply of replies) if (!reply.isComplete) complete(reply, state);
}

function fill(select, options, preferred) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  const values = options.map(([value]) => value);
  select.value = [before, preferred].find((value) => values.includes(value)) ?? values[0] ?? "";
}

function kindButton({ name, examples }) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.title = examples.join("\n");
  let shown = 0;
  button.onclick = () => {
    if (examples.length) $("text").value = examples[shown++ % examples.length];
    $("text").focus();
  };
  return button;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showBusy() {
  const isMaking = awaited || replies.some((reply) => !reply.isComplete);
  const isSounding = replies.some((reply) => reply.hasSounded && reply.view.again.disabled);
  $("stop").disabled = !(isMaking || isSounding || isTalking);
}

// Empty the stage for a new query; whatever sounds is silenced.
function begin() {
  player.clear();
  notice("");
  awaited = true;
  const names = [...new Set(selects.map((select) => select.value).filter(Boolean))];
  replies = names.map((name) => {
    const { steps, rule } = welcome.decodings.find((one) => one.name === name);
    const view = new ReplyView({ name, steps, rule, blockTokens: welcome.block_tokens[name] });
    const reply = { view, id: "", samples: [], played: 0, underruns: 0 };
    view.again.onclick = () => playAgain(reply);
    return reply;
  });
  $("columns").replaceChildren(...replies.map(({ view }) => view.root));
  $("heard").textContent = "–";
  showBusy();
  return names;
}

function playAgain(reply) {
  player.clear();
  Object.assign(reply, { played: 0, underruns: 0 });
  player.begin(reply.id);
  for (const samples of reply.samples) player.add(reply.id, samples);
  player.complete(reply.id);
}

async function ask(message) {
  await player.prepare(welcome.rate_hz);
  const decodings = begin();
  $("asked").textContent = "…";
  askedAt = performance.now();
  connection.send({ ...message, decodings });
}

function stop() {
  endTalking(false);
  connection.send({ type: "stop" });
  player.clear();
  awaited = false;
  completeAll("stopped");
  for (const reply of replies) reply.view.again.disabled = reply.samples.length === 0;
  $("stop").disabled = true;
}

async function startTalking() {
  if (isTalking || $("talk").disabled) return;
  isTalking = true;
  $("talk").setAttribute("aria-pressed", "true");
  $("talk-label").textContent = $("auto-end").checked ? "Listens" : "Release to ask";
  await player.prepare(welcome.rate_hz);
  const decodings = begin();
  connection.send({ type: "stop" });
  try {
    const frames = [];
    let isOpen = false;
    const rate = await microphone.open(({ pcm, peak }) => {
      $("level").value = peak;
      $("talk").style.setProperty("--loudness", peak);
      isOpen ? connection.send(pcm) : frames.push(pcm);
    });
    connection.send({ type: "listen", decodings, rate_hz: rate, samples: "pcm16", auto_end: $("auto-end").checked });
    frames.forEach((pcm) => connection.send(pcm));
    isOpen = true;
    $("asked").textContent = "listening …";
    if (!isTalking) finishTalking();
  } catch (error) {
    notice(`No microphone: ${error.message}`);
    endTalking(false);
    awaited = false;
  }
  showBusy();
}

function finishTalking() {
  askedAt = performance.now();
  connection.send({ type: "end" });
  microphone.close();
}

function endTalking(isAsked) {
  if (!isTalking) return;
  isTalking = false;
  $("talk").setAttribute("aria-pressed", "false");
  showTalkLabel();
  $("level").value = 0;
  if (isAsked && microphone.context) finishTalking();
  else if (!isAsked) microphone.close();
}

function showTalkLabel() {
  $("talk-label").textContent = $("auto-end").checked ? "Talk" : "Hold to talk";
}

// The button or the space bar goes down.
function press() {
  if ($("auto-end").checked && isTalking) endTalking(true);
  else startTalking();
}

$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) ask({ type: "say", text });
};
$("test").onsubmit = (event) => {
  event.preventDefault();
  ask({ type: "ask", id: $("query").value });
};
$("stop").onclick = stop;
$("auto-end").onchange = showTalkLabel;
$("talk").onpointerdown = (event) => {
  $("talk").setPointerCapture(event.pointerId);
  press();
};
$("talk").onpointerup = $("talk").onpointercancel = () => {
  if (!$("auto-end").checked) endTalking(true);
};
const types = (target) => target.matches("input[type=text], select, button:not(#talk), a, input[type=checkbox]");
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key !== " " || event.repeat || types(event.target)) return;
  event.preventDefault();
  press();
});
document.addEventListener("keyup", (event) => {
  if (event.key === " " && isTalking && !$("auto-end").checked && !types(event.target)) {
    event.preventDefault();
    endTalking(true);
  }
});
$("theme").onclick = () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
};
