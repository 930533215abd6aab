"""How an experiment runs: stages are planned and checked, then run, resumed and reused.

Nothing here knows of speech. `configuration`, `plan` and `runs` import no torch, so that mistakes are told at once.
"""
