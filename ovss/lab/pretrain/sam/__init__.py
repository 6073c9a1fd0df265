"""Train the miniature SAM."""
