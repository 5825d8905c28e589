"""One file an experiment; `recipes` has what they share."""
