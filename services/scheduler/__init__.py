"""The scheduler room: trainings from submit to the last freed GPU."""
