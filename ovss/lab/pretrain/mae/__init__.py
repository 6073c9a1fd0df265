"""The lab's MAE: its recipe and its training."""
