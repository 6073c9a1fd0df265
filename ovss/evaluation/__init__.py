"""Counting what a segmenter got right, and what the counts are worth."""
