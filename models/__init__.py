"""Networks, losses, training and export (PyTorch). Importing this package itself imports no torch."""
