"""Inference engines and the model store."""
