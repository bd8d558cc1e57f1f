"""Measures of the stages of trajectories: steps, inspections and refinements."""
