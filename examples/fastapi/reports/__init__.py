"""An HTTP service (`app`) that answers by calling a msgbus server (`service`)."""
