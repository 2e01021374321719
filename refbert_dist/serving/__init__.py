"""A prediction server: requests in, batches through the pipeline, answers out."""
