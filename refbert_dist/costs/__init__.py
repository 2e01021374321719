"""What an experiment takes before anything runs: samples, tokens, operations, bytes, files and seconds of every stage.

Formulas from shapes, times constants that were measured. ``docs/scale.md`` has both, and how far off they are.
"""
