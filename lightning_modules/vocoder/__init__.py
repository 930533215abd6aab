"""Speech tokens to waveform: one small interface, one file per vocoder."""
