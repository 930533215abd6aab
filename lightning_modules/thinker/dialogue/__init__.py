"""From the turns of a dialogue to what the language model reads: the chat template, and what fits into the context."""
