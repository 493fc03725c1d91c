"""A trained detector as an ONNX model, which judges pictures without this code and without torch."""
