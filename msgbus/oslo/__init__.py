"""The driver of msgbus for oslo.messaging, so that services of OpenStack run on msgbus's message systems unchanged.

oslo.messaging loads it through the module ``msgbus_oslo``, by ``transport_url = msgbus+DRIVER://...``. It stands on
`msgbus.lowlevel` alone: requests and replies are written and read as oslo.messaging itself does.
"""
