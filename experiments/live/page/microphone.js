// The microphone: opened for one query, closed behind it.

export class Microphone {
  // onFrame({pcm: ArrayBuffer, peak}); gives samples per second, for which the browser's own rate is kept.
  async open(onFrame) {
    if (!navigator.mediaDevices) {
      throw new Error("this address is not secure, so the browser gives no microphone; use localhost or https");
    }
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("microphone_worklet.js");
    const node = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0, channelCount: 1 });
    node.port.onmessage = ({ data }) => onFrame(data);
    this.context.createMediaStreamSource(this.stream).connect(node);
    return this.context.sampleRate;
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
    this.stream = this.context = null;
  }
}
