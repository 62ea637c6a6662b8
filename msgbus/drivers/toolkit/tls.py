"""The options of a driver that has TLS."""

from __future__ import annotations

import os
from types import SimpleNamespace

from msgbus.exceptions import ConfigurationError, InvalidTransportURL
from msgbus.url import TransportURL


def check_tls_files(options: SimpleNamespace, url: TransportURL) -> None:
    """Check that the files of a driver's TLS options can be read, and belong together.

    Raises:
        InvalidTransportURL: one cannot be read.
        ConfigurationError: there is the key of a certificate and no certificate.
    """
    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
        path = getattr(options, name)
        if path and not os.access(path, os.R_OK):
            raise InvalidTransportURL(str(url), f"{name}: {path} cannot be read")
    if options.ssl_key_file and not options.ssl_cert_file:
        raise ConfigurationError("ssl_key_file has no effect without ssl_cert_file, the certificate whose key it is")
