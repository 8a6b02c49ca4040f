"""A trained network as one file that runs without this project: written whole, checked, and with its classes in it."""
