"""What ends a save for good."""


class CannotSaveError(Exception):
    """It can't be saved, and trying again would not help; the message is the sentence to show."""
