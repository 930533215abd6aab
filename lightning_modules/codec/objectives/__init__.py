"""What a codec learns beside restoring speech, so that its tokens are easy to predict; nothing of it speaks or encodes.

Each objective is one file with a :class:`~lightning_modules.codec.objectives.ramp.Ramp` as its weight.
"""
