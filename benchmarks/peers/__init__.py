"""The rows: a module for each library, with a server and a client for each way to use it."""
