"""Talkers: from a thinker's text states to discrete speech tokens, in pure torch."""
