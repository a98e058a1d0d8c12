"""Exports detectors as OpenVINO IR."""
