"""Train the miniature latent diffusion model."""
