"""The client of the example. It reads hello.conf; MSGBUS_URL, if it is set, says where the message system is."""

import os
import pathlib

from oslo_config import cfg

import msgbus

conf = cfg.ConfigOpts()
conf([], default_config_files=[str(pathlib.Path(__file__).parent / "hello.conf")])

# One transport for the whole process: it holds the connections. Threads may share it, and the clients too.
transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
client = msgbus.get_rpc_client(transport, msgbus.Target(topic="hello"), timeout=10)
ctxt = {"user": "ada"}  # goes along with each request, as the first argument of the method

# call: any one of the servers runs it, and this waits for what it returns.
print("call:", client.call(ctxt, "greet", name="Ada"))

# The same on a certain server.
print("call, server two:", client.prepare(server="two").call(ctxt, "greet", name="Ada"))

# cast: any one of the servers runs it, and this does not wait for that. fanout_cast: all of them run it.
client.cast(ctxt, "note", text="one of you, please note this")
client.fanout_cast(ctxt, "note", text="all of you, please note this")

# multicall: the items of a generator, as they arrive. Leaving the loop closes the generator on the server.
with client.multicall(ctxt, "count", to=3) as numbers:
    for number in numbers:
        print("multicall:", number)

# An exception that the method raises is raised here.
try:
    client.call(ctxt, "greet", name="")
except ValueError as exc:
    print("the server raised ValueError:", exc)

# A topic without servers fails at once, not after the timeout.
try:
    client.prepare(topic="no-such-service").call(ctxt, "greet", name="Ada")
except msgbus.MessageUndeliverable:
    print("no server listens at no-such-service")

transport.cleanup()
