"""Where trainings run: the port of this room and one driver per cloud."""
