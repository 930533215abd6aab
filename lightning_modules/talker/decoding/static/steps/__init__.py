"""Blocks that end when their tokens say so: a step as one function of tensors, compiled or captured, and its flag."""
