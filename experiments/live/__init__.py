"""The live page: a server that lets a trained system be spoken with, its protocol, and the page itself in `page/`.

The protocol is written down in README.md. Model and synthesizer are used by one thread only, the page by none.
"""
