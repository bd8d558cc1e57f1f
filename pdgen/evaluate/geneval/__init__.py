"""GenEval: its metadata, its rule, and the scores of a folder of images."""
