"""Judges the driver that oslo.messaging loads for ``msgbus+...://``, by its entry point alone, beside the stock driver.

- `upstream` runs oslo.messaging's own functional tests (`upstream_run` is the process that runs them).
- `peers` starts clients and servers that know oslo.messaging and nothing else (`peer` is such a process), over a
  message system (`buses`): pairs of stock and msgbus, and load while connections are cut or servers restarted (`load`).
- `ironic` installs Ironic and runs its API and its conductor.
- `figures` keeps what came of it, of which docs/openstack/generate.py makes a part of a page.
"""
