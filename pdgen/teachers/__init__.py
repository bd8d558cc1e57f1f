"""Planner, painter, judge and writer: exact, behind a chat endpoint, or FLUX.1-Kontext."""
