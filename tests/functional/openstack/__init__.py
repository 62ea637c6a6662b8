"""oslo.messaging over msgbus: what `tests.openstack` judges."""
