"""From a corpus as it comes to tar shards with one index, and the check of what was written.

What is wrong with an example is a fault: counted by kind, listed with its path, never skipped in silence.
"""
