"""What a machine has, and whether a program can run on it with the settings that it is given."""
