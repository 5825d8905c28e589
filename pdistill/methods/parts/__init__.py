"""Functions and values that methods share."""
