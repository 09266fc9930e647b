"""Command lines: flags, help, what programs share."""
