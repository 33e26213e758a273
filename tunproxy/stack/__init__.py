"""The userspace TCP and UDP: state machines of single flows, without I/O, clock or randomness."""
