// Collects what the microphone hears into frames of a few milliseconds, as PCM16.

const FRAME_S = 0.032;

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Int16Array(Math.round(FRAME_S * sampleRate));
    this.filled = 0;
    this.peak = 0;
  }

  process(inputs) {
    for (const value of inputs[0][0] ?? []) {
      const clipped = Math.max(-1, Math.min(1, value));
      this.peak = Math.max(this.peak, Math.abs(clipped));
      this.frame[this.filled++] = Math.min(32767, Math.round(clipped * 32768));
      if (this.filled === this.frame.length) {
        const pcm = this.frame.slice().buffer;
        this.port.postMessage({ pcm, peak: this.peak }, [pcm]);
        this.filled = this.peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
