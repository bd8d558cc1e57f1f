"""Memory and time of a training step on other machines, and runs of several processes."""
