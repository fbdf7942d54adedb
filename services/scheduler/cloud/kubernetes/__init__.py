"""Trainings as Jobs in the namespaces of their projects.

Nothing is imported here: every pod's init container runs :mod:`~services.scheduler.cloud.kubernetes.prepare`, and would
wait for the whole driver.
"""
