"""Graphs of fewer bits: 16 for GPUs, 8 for the CPU within a budget."""
