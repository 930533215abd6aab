"""How replies are judged: word error rate with intervals, where errors sit, the text normalisation they depend on."""
