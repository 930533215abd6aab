"""How replies are judged: word error rate with intervals, where errors sit, the text normalisation they depend on.

Besides what was said: how it sounds where chunks meet, and how natural a published network finds it.
"""
