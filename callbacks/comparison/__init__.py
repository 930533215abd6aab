"""Compares decodings on test dialogues: rows of a table, pictures, audio."""
