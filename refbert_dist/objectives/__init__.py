"""What a training job minimises: each objective turns samples into loss terms for the one loop."""
