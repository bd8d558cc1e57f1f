"""The frozen model, batches of trajectories, compiled functions and the sampler."""
