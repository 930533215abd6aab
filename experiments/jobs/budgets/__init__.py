"""Fair budgets: what talkers reach after how much training at which learning rate, and which of it each is given.

A talker is chosen by its word errors on validation dialogues alone. Nothing here trains.
"""
