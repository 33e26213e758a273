"""Octets to values and back: one module per protocol, no state, no clock."""
