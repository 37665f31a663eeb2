"""Real and forged images: manifests, layouts of public data sets, splits by identity, pairs, self-blended images."""
