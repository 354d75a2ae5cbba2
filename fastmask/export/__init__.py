"""Export: a run as an ONNX file, to predict without torch."""
