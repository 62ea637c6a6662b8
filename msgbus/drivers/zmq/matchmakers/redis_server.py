"""Which Redis the matchmaker ``redis`` uses, and how to connect to it."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.base import import_library
from msgbus.exceptions import ConfigurationError

TIMEOUT = 3.0
"""Seconds for an answer of Redis."""


class Server:
    """See the module's text.

    Attributes:
        name: ``HOST:PORT/DB``, without user and password.
        db: the number of its database.
    """

    def __init__(self, url: str) -> None:
        """Read a URL; no I/O.

        Raises:
            ConfigurationError: it is invalid. The URL is not in the text, since it may hold a password.
            DriverLoadFailure: the library for Redis is missing.
        """
        self._redis = import_library("redis", "redis")
        try:
            pool = self._redis.ConnectionPool.from_url(url)
            settings = pool.connection_kwargs
            if (
                any(name.startswith("ssl_") for name in settings)
                and pool.connection_class is not self._redis.SSLConnection
            ):
                raise ConfigurationError(
                    "redis_url of [msgbus_zmq] has options for TLS, which would have no effect: it has to begin with "
                    "rediss://"
                )
            pool.connection_class(**settings)  # Opens nothing; an unknown option is an error.
            self.db = int(settings.get("db") or 0)
            port = int(settings.get("port") or 6379)
        except ConfigurationError:
            raise
        except (ValueError, TypeError, self._redis.RedisError):
            raise ConfigurationError(
                "redis_url of [msgbus_zmq] is invalid: write redis://USER:PASSWORD@HOST:PORT/DB (all but HOST may be "
                "left out), rediss:// with TLS, or unix:///PATH; special characters of the password are "
                "percent-encoded"
            ) from None
        place = settings.get("path") or f"{settings.get('host') or 'localhost'}:{port}"
        self.name = f"{place}/{self.db}"
        self._url = url
        self._secrets = [str(settings[name]) for name in ("password", "ssl_password") if settings.get(name)]

    def connect(self) -> Any:
        """A client that repeats nothing by itself, and waits for an answer for at most `TIMEOUT`."""
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return self._redis.Redis.from_url(
            self._url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            client_name="msgbus",
        )

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a command may raise. It connects first, and raises ValueError for what cannot be a host's name."""
        return (self._redis.RedisError, OSError, ValueError)

    def explain(self, exc: Exception) -> str:
        """An error's text, without passwords."""
        text = " ".join(str(exc).split()) or type(exc).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
