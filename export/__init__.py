"""Artefacts that run where nothing of kerasdet is installed."""

from kerasdet.export.saved_model.write import export_saved_model
from kerasdet.export.tflite.write import export_tflite
from kerasdet.export.verify import verify_saved_model, verify_tflite

__all__ = ["export_saved_model", "export_tflite", "verify_saved_model", "verify_tflite"]
