"""Training that resumes exactly: what the lab's recipes and trainable methods share."""
