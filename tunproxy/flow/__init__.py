"""Which packet belongs to which flow, and what is to become of it; without I/O or clock."""
