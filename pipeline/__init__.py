"""The chain from raw frames to safe frames."""
