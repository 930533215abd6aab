"""How replies are judged: word error rate, and the text normalisation that it depends on."""
