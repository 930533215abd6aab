"""Tests of the thinker."""
