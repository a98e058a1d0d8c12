"""Exports detectors as ONNX files."""
