"""What runs in a training: the port and one driver per framework."""
