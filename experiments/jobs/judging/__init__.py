"""Text quality on spoken benchmarks: a thinker's answers, closed ones matched, open ones scored by a judge."""
