"""Training of a SAM: training data, prompt sampling, losses and the training loop."""
