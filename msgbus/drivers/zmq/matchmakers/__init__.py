"""How ZeroMQ nodes find each other: by files of this host, by a file that somebody wrote, or by Redis."""
