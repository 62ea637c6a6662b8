"""Checks what msgbus promises when things fail: sends messages between processes, breaks something, and reads on.

Every message leaves its trace in a journal: sent, begun, finished, answered, returned or raised (`journal`). Clients
and servers are processes of their own (`client`, `server`, `processes`), connected to a message system (`systems`).
A scenario (`scenarios`) starts them and breaks something, with the means of a `Run` (`run`). What has become of each
message is then held against the promises (`proofs`), and counted (`figures`).
"""
