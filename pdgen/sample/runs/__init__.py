"""Jobs from prompts, the part of a run that a process samples, and the folder of a run with its page."""
