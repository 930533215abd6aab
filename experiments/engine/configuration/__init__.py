"""From YAML to objects: composition of files and overrides, checks against schema and signatures, and building.

Nothing here imports torch, so that help and mistakes in an experiment file come at once.
"""
