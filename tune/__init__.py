"""The search: Ray Tune over the student's shape, the references it reads and how it is trained."""
