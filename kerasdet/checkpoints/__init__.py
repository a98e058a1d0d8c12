"""Checkpoints of other frameworks: read without torch, without running what a pickle asks for."""

from kerasdet.checkpoints.read import read

__all__ = ["read"]
