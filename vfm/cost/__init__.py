"""Cost of training and serving: measured steps, memory, prices with their sources, quotes."""
