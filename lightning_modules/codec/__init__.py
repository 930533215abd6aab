"""Speech codecs: waveform to tokens and back, each with the format of its tokens; streaming is the vocoder's."""
