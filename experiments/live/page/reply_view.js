// One reply as people see it: text as it comes, blocks as they are filled, clocks.

const STEP_MS = 70;
const STAGES = { speech_encoder: "speech encoder", thinker: "thinker", talker: "talker", vocoder: "vocoder" };

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export class ReplyView {
  constructor({ name, steps, rule, blockTokens }) {
    this.blockTokens = blockTokens;
    this.steps = steps;
    this.root = make("article");
    this.root.setAttribute("aria-label", `Reply by ${name}`);
    const head = make("div", "head");
    this.state = make("span", "state quiet", "waits");
    const steps_ = steps === 1 ? "1 step per block" : `${steps} steps per block`;
    head.append(make("h3", "", name), make("span", "quiet", [steps_, rule].filter(Boolean).join(", ")), this.state);
    this.answer = make("p", "answer");
    this.answer.setAttribute("aria-live", "polite");
    this.blocks = make("div", "blocks");
    this.blocks.setAttribute("role", "img");
    const legend = make("div", "legend quiet");
    legend.append("first step", make("i"), "last");
    this.stages = make("div", "stages");
    this.stages.setAttribute("aria-hidden", "true");
    this.stageNames = make("div", "stage-names");
    this.lanes = make("div", "lanes");
    this.lanes.setAttribute("role", "img");
    this.clocks = make("dl", "clocks");
    this.values = {};
    for (const [key, label] of [
      ["sound", "first sound"],
      ["buffer", "of that, buffer"],
      ["chunk", "first chunk, server"],
      ["rtf", "talker RTF"],
      ["passes", "passes per block"],
      ["underruns", "underruns"],
    ]) {
      const pair = make("div");
      this.values[key] = make("dd", "", "–");
      pair.append(make("dt", "", label), this.values[key]);
      this.clocks.append(pair);
    }
    this.again = make("button", "", "Play again");
    this.again.type = "button";
    this.again.disabled = true;
    this.root.append(head, this.answer, this.blocks, legend, this.stages, this.stageNames, this.lanes, this.clocks, this.again);
  }

  setState(text, isGrowing = false) {
    this.state.textContent = text;
    this.answer.classList.toggle("is-growing", isGrowing);
  }

  setText(text) {
    this.answer.textContent = text;
  }

  setClock(key, text) {
    this.values[key].textContent = text;
  }

  // A block's tokens come together, each with the step that revealed it; they are shown step by step.
  addBlock({ block, tokens, order, passes }) {
    if (!tokens.length) return; // speech had ended before it
    const row = make("div", "block");
    row.style.setProperty("--size", this.blockTokens);
    row.append(make("span", "number", String(block + 1)));
    const last = Math.max(1, (order ? this.steps : tokens.length) - 1);
    for (let i = 0; i < this.blockTokens; i++) {
      const cell = make("span", "cell");
      row.append(cell);
      if (i >= tokens.length) {
        cell.style.visibility = "hidden";
        continue;
      }
      const step = order ? order[i] : i;
      cell.title = `token ${tokens[i]}, ${order ? "step" : "pass"} ${step + 1}`;
      cell.style.setProperty("--late", Math.min(1, step / last));
      setTimeout(() => cell.classList.add("is-shown"), STEP_MS * (order ? step : step / 4));
    }
    row.title = `block ${block + 1}: ${passes} passes`;
    this.blocks.append(row);
    this.blocks.setAttribute("aria-label", `${block + 1} blocks of speech tokens`);
  }

  setStages(stages) {
    const total = stages.total || 1;
    this.stages.replaceChildren();
    this.stageNames.replaceChildren();
    for (const [key, label] of Object.entries(STAGES)) {
      const part = make("span");
      part.style.flex = String(stages[key] / total);
      this.stages.append(part);
      this.stageNames.append(make("span", "", `${label} ${Math.round(stages[key])} ms`));
    }
    this.setClock("chunk", `${Math.round(stages.total)} ms`);
  }

  // When each stage was at work, a lane for each: [stage, number, start, end] in ms from the end of the query.
  setSpans(spans) {
    const end = Math.max(1, ...spans.map((span) => span[3]));
    this.lanes.replaceChildren();
    for (const [key, label] of Object.entries(STAGES)) {
      const lane = make("div", "lane");
      for (const [, number, start, until] of spans.filter((span) => span[0] === key)) {
        const bar = make("span");
        bar.style.left = `${(100 * start) / end}%`;
        bar.style.width = `${(100 * (until - start)) / end}%`;
        bar.title = `${label} ${number + 1}: ${Math.round(start)} to ${Math.round(until)} ms`;
        lane.append(bar);
      }
      this.lanes.append(lane);
    }
    this.lanes.setAttribute("aria-label", `Work of the stages over ${Math.round(end)} ms`);
  }
}
