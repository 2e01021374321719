"""SLURM: jobs of a run directory, submitted from a login node through submitit."""
