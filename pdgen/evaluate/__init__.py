"""Benchmarks of models: GenEval, WISE, shapes world, process measures, statistics, and pages of scores."""
