"""What a run minimises: losses of records, and preferences between trajectories."""
