"""VocalNet's talker (arXiv 2504.04060), a published baseline: text as a prefix of the speech, several tokens per pass.

Its released weights are read as they are. Unlike the rest of the talkers it is built from transformers' Llama layers.
"""
