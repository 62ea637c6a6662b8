"""Calls the service with the four functions.

python client.py --config-file service.conf
"""

import sys

from oslo_config import cfg

from msgbus import rpc

CONF = cfg.CONF
CONF.register_cli_opts([cfg.StrOpt("topic", default="thing"), cfg.StrOpt("notes", default="notes.txt")])


def show(topic: str, notes: str) -> None:
    context = rpc.RpcContext(user="ada")
    print("call:", rpc.call(context, topic, {"method": "whoami"}))
    print("call of one host:", rpc.call(context, rpc.queue_get_for(context, topic, "host1"), {"method": "where"}))
    print("nested call:", rpc.call(context, topic, {"method": "ask", "args": {"topic": f"{topic}.host1"}}))
    print("multicall:", list(rpc.multicall(context, topic, {"method": "count", "args": {"to": 3}})))
    rpc.cast(context, topic, {"method": "note", "args": {"path": notes, "text": "cast"}})
    rpc.fanout_cast(context, topic, {"method": "note", "args": {"path": notes, "text": "fanout"}})


if __name__ == "__main__":
    CONF(sys.argv[1:], project="thing", default_config_files=[])
    show(CONF.topic, CONF.notes)
    rpc.cleanup()
