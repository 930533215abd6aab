"""How replies sound, whatever they say: where chunks meet, how much is silent, and how natural a network finds them."""
