"""Real and forged images: manifests, layouts of the public data sets, splits by identity, pairs and self-blended images."""
