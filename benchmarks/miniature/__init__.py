"""The paper's tables in miniature, see ``benchmarks.miniature.run``."""
