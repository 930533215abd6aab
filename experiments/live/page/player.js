// The page's end of the player: makes the audio context when somebody acts, and passes replies on.

export class Player {
  // onEvent({what: "started" | "playing" | "underrun" | "finished", id, played, underruns})
  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  // Browsers let a page sound only after a key or a click: call this from one.
  async prepare(rateHz) {
    if (!this.node) {
      this.context = new AudioContext({ sampleRate: rateHz });
      this.node = this.context.audioWorklet.addModule("player_worklet.js").then(() => {
        const node = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
        node.connect(this.context.destination);
        node.port.onmessage = ({ data }) => this.onEvent(data);
        return node;
      });
    }
    if (this.context.state !== "running") await this.context.resume();
    await this.node;
  }

  async post(message) {
    (await this.node)?.port.postMessage(message);
  }

  begin(id) {
    this.post({ do: "begin", id });
  }

  add(id, samples) {
    this.post({ do: "add", id, samples });
  }

  complete(id) {
    this.post({ do: "complete", id });
  }

  clear() {
    this.post({ do: "clear" });
  }
}
