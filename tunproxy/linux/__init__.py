"""What we ask of the Linux kernel: devices, routes, rules, tables, namespaces, privileges."""
