"""Tests of composing and running experiments."""
