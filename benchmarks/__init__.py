"""Figures, as ratios against a bare baseline in the same run: ``make bench``.

Nothing here asserts; each benchmark prints one JSON line. Absolute figures depend on the machine, ratios less so.
"""
