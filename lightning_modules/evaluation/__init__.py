"""How replies are judged: word error rate and the text normalisation named beside it."""
