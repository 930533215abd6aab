"""Thinker: from a spoken query to the text of the reply, with the hidden states that anchor the talkers."""
