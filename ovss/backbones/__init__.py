"""Pretrained networks, opened up: library models that also give their insides."""
