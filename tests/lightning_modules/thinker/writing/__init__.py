"""Tests of the ways to write a reply."""
