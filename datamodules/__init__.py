"""Data: the embedded corpus of spoken examples, the readers of the released layout and the Lightning DataModule."""
