"""How fast talkers decode, against what the machine could do: ways to run them, counts, statistics, a report."""
