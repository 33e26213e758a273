"""Where flows leave: an SSH connection, or a marked socket of our own."""
