"""Loading of published parts: by transformers, or single weights out of their files; any room may call it."""
