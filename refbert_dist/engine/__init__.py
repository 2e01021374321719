"""The training engine: one loop on DeepSpeed, canonical checkpoints, processes of one machine."""
