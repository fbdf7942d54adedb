"""The ``elearn`` command: one file per noun, all of it on :class:`elearn.Client`."""
