"""In context: a task given by a few examples, without training."""
