"""Process-driven image generation in JAX: plan, sketch, inspect, refine."""
