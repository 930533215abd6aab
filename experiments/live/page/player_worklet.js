// Plays replies in order out of a small buffer. Each begins when the buffer holds enough, or the reply is complete; a
// buffer that runs empty before that is an underrun, after which it waits for more than before.

const START_MS = 80;
const GROWTH_MS = 40;
const REPORT_S = 0.1;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.waitMs = START_MS;
    this.clear();
    this.port.onmessage = ({ data }) => this[data.do](data);
  }

  clear() {
    this.replies = [];
    this.isPlaying = false;
    this.reportedAt = 0;
  }

  begin({ id }) {
    this.replies.push({ id, pieces: [], at: 0, length: 0, played: 0, underruns: 0, isComplete: false });
  }

  find(id) {
    return this.replies.find((reply) => reply.id === id);
  }

  add({ id, samples }) {
    const reply = this.find(id);
    if (!reply) return;
    reply.pieces.push(samples);
    reply.length += samples.length;
  }

  complete({ id }) {
    const reply = this.find(id);
    if (reply) reply.isComplete = true;
  }

  tell(what, reply) {
    const { id, played, underruns } = reply;
    this.port.postMessage({ what, id, played, underruns });
  }

  process(inputs, outputs) {
    const output = outputs[0][0];
    let filled = 0;
    while (filled < output.length && this.replies.length) {
      const reply = this.replies[0];
      if (!this.isPlaying) {
        if (!reply.isComplete && (1000 * reply.length) / sampleRate < this.waitMs) break;
        this.isPlaying = true;
        if (!reply.played && reply.length) this.tell("started", reply);
      }
      if (!reply.length) {
        this.isPlaying = false;
        if (reply.isComplete) {
          this.replies.shift();
          this.tell("finished", reply);
          continue;
        }
        reply.underruns += 1;
        this.waitMs += GROWTH_MS;
        this.tell("underrun", reply);
        break;
      }
      const piece = reply.pieces[0];
      const count = Math.min(output.length - filled, piece.length - reply.at);
      output.set(piece.subarray(reply.at, reply.at + count), filled);
      filled += count;
      reply.at += count;
      reply.length -= count;
      reply.played += count;
      if (reply.at === piece.length) {
        reply.pieces.shift();
        reply.at = 0;
      }
    }
    if (this.replies.length && currentTime - this.reportedAt > REPORT_S) {
      this.reportedAt = currentTime;
      this.tell("playing", this.replies[0]);
    }
    return true;
  }
}

registerProcessor("player", Player);
