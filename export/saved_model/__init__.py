"""Exports detectors as TensorFlow SavedModels, for TF Serving and every TensorFlow runtime."""
