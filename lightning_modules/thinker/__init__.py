"""Thinker: hears a spoken query and writes the reply as text, with the hidden states that anchor the talkers."""
