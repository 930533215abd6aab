"""Tests of the chat templates, of what fits into the context, and of prompts with several audios."""
