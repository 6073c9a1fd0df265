"""Refiners: what sharpens the score maps of one image."""
