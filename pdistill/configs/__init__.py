"""One file an experiment; `scale` has what they share."""
