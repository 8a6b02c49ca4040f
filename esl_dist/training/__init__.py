"""A training: set-up, the data of a step, the step, the update, the log, the loop."""
