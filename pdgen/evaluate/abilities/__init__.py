"""The benchmark of a base model's abilities in shapes world: drawing, editing, reading and thinking."""
