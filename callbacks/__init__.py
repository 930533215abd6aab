"""Policies that accompany a training run."""
