"""Trials of the live server: trouble of all kinds that clients make, and how soon the first sound comes."""
