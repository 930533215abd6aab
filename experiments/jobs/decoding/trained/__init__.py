"""How fast the trained talkers of a comparison speak what its thinker wrote: its texts, timed replies, a table."""
