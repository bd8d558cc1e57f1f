"""Jobs from prompts, and the folder of a sampling run with its page."""
