"""Train the miniature DINO."""
