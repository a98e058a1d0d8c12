"""Artefacts that run where nothing of kerasdet is installed."""

from kerasdet.export.saved_model import export_saved_model
from kerasdet.export.verify import verify_saved_model

__all__ = ["export_saved_model", "verify_saved_model"]
