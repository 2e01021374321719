"""The stages of an experiment; each is ``run(experiment) -> result`` and finds its inputs by their keys."""
