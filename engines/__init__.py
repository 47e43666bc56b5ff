"""Inference engines and the model store."""

import os

# ONNX Runtime's builds report models and machine to its maker, unless this is set before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
