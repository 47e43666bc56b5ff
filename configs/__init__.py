"""Typed configuration and the model manifest. Imports nothing heavy."""
