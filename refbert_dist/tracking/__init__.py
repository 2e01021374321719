"""Metrics, progress, provenance, and their copy in MLflow. The files in the run directory are the truth."""
