"""Real message systems, which the functional tests start and kill as they need."""
