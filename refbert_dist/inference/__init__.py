"""Finished models: the folder that holds one, and answers from it."""
