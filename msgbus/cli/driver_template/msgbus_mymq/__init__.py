"""The driver ``mymq`` of msgbus. Importing this imports no client library: that is left to whoever uses the driver."""
