"""What the rooms mean when they speak to each other and to the world: one file per noun.

Imports only msgspec and the standard library.
"""
