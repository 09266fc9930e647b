"""Making datasets here: the loop, recipes per body, and the experts that act."""
