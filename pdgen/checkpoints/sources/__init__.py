"""What people bring to be converted: which files hold the weights, under which names, and what never converts."""
