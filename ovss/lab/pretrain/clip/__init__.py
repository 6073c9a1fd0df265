"""Train the miniature CLIP."""
