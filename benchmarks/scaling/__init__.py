"""How the cost of a call grows with what is there: calls in flight, topics, servers, and calls made before."""
