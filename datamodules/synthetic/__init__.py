"""The corpus that the quickstart makes: intents, lexicon, voices of eSpeak NG, and its text tokenizer.

Changing a template or a word changes every figure of the quickstart.
"""
