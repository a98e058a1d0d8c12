"""Holds the gin configurations that are installed with kerasdet."""
