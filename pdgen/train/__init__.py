"""Loss, optimizer, step, loop and the checkpoints of a run."""
