"""Transparent proxying over plain SSH."""

__version__ = "0.1.0"
