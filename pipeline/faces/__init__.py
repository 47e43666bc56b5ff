"""Faces in frames: found, followed, measured and told apart."""
