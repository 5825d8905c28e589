"""Command lines, one file each."""
