"""Exports detectors as TFLite files, for LiteRT and MediaPipe."""
