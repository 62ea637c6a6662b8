"""How ZeroMQ nodes find each other: by a directory on one host, by a file that an operator writes, or by Redis."""
