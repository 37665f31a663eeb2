"""Training that knows no task: optimizer, checkpoints, watchdogs, kept features."""
