"""Train the miniature image-text matching models."""
