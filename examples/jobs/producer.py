"""Puts twenty jobs into the queue, and does not wait until they are done. One of them cannot be done."""

import os

from oslo_config import cfg

import msgbus

conf = cfg.ConfigOpts()
conf([], default_config_files=[])
transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
# at_least_once: a job that may or may not have been done, since its worker died, is done again.
client = msgbus.get_rpc_client(transport, msgbus.Target(topic="invoices"), timeout=10, delivery="at_least_once")

amounts = {number: 10 * number for number in range(1, 21)}
amounts[13] = -1
client.cast_many({}, (("write", {"number": number, "amount": amount}) for number, amount in amounts.items()))
print("20 jobs are in the queue")
transport.cleanup()
