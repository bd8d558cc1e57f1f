"""Sources of a conversion: the files that hold the weights, the names of the tensors, and what is refused."""
