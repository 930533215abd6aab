"""Which positions a masked talker has to predict: schemes, and their levels over the course of training."""
