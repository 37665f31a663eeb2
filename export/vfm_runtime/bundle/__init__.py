"""A bundle on disk: contract, manifest, sessions of ONNX Runtime, golden answers."""
