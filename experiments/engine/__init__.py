"""How an experiment runs: YAML is composed and checked, stages are planned, run, resumed and reused.

Nothing here knows of speech. `config`, `checks` and `errors` import no torch, so that help and mistakes come at once.
"""
