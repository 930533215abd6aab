"""Waveforms and features: log-mel, convolutional blocks, augmentation; shared by codec and recognizer."""
