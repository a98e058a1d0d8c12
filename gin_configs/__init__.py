"""Configurations that ship with kerasdet."""
