// The WebSocket to the server: says hello, reads both kinds of frame, and comes back when it was lost.

const AUDIO_KIND = 1;
const HEADER_BYTES = 8;
const FIRST_PAUSE_MS = 300;
const LONGEST_PAUSE_MS = 4000;
const BAD_TOKEN = 4401;

export class Connection {
  // onMessage(message), onAudio({turn, index, samples}), onState("connecting" | "ready" | "lost" | "refused")
  constructor({ onMessage, onAudio, onState }) {
    Object.assign(this, { onMessage, onAudio, onState });
    this.pause = FIRST_PAUSE_MS;
    this.open();
  }

  open() {
    this.onState("connecting");
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/talk`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
      socket.send(JSON.stringify({ type: "hello", token }));
    };
    socket.onmessage = (event) => this.read(event.data);
    socket.onclose = (event) => {
      this.socket = null;
      if (event.code === BAD_TOKEN) {
        this.onState("refused");
        return;
      }
      this.onState("lost");
      setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(LONGEST_PAUSE_MS, this.pause * 1.6);
    };
    this.socket = socket;
  }

  read(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (message.type === "welcome") {
        this.pause = FIRST_PAUSE_MS;
        this.onState("ready");
      }
      this.onMessage(message);
      return;
    }
    const view = new DataView(data);
    if (view.getUint8(0) !== AUDIO_KIND) return;
    const pcm = new Int16Array(data, HEADER_BYTES);
    const samples = Float32Array.from(pcm, (value) => value / 32768);
    this.onAudio({ index: view.getUint8(1), turn: view.getUint32(4, true), samples });
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
    }
  }
}
