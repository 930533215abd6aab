"""Converted corpora: the index of tar shards, byte ranges of them, and the examples that they hold.

Reads and writes shards; knows nothing of where their examples came from.
"""
