"""Trainings as Jobs in the namespaces of their projects."""
