"""The save job: a process of its own that copies a SavedModel into the model store and says what it is."""
