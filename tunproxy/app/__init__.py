"""Where the pure core, the upstreams and the kernel meet: the processes of the program."""
