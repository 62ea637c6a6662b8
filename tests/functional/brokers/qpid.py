"""An Apache Qpid Broker-J of the tests' own, on loopback, with ports and data of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
from typing import Any, Final

from tests.functional.brokers.management import Management
from tests.functional.brokers.processes import (
    BrokerFailed,
    BrokerMissing,
    ProcessTree,
    free_ports,
    poll,
    send_signal,
)

__all__ = ["USERS", "BrokerFailed", "BrokerMissing", "Qpid"]

HERE: Final = pathlib.Path(__file__).parent
USERS: Final = {"guest": "guest", "limited": "limited"}
"""Name -> password. guest may do everything; limited may connect, and nothing else."""

_COMPLETE: Final = "qpid 10.1.0"  # what `install` has written last
_JAVA: Final = "usr/lib/jvm/java-17-openjdk-*/bin/java"
_KEY_STORE_PASSWORD: Final = "made-up"
_START_SECONDS: Final = 120.0  # Java starts slowly where many tests share few processors
_STOP_SECONDS: Final = 30.0


class Qpid(Management):
    """One Broker-J; nothing runs until ``start()``.

    ``base`` is a folder that belongs to this broker alone; it is made if need be. ``durable`` keeps queues and messages
    on disk, in Berkeley DB; without it a broker that is started again is empty. ``tls`` is a folder with ca.pem,
    server.pem and server.key: with it the broker also listens for TLS, and for TLS with certificates of ca.pem's for
    its clients. ``config`` is the file of an initial configuration to start with in place of the one that is made here.
    Raises ``BrokerMissing`` if this machine does not have Broker-J. Ports stay the same over restarts.
    """

    def __init__(
        self,
        base: pathlib.Path,
        *,
        durable: bool = False,
        tls: pathlib.Path | None = None,
        config: pathlib.Path | None = None,
    ) -> None:
        self.base = base
        self._java, self._home = _find()
        self.port, self.anonymous_port, self.tls_port, self.external_port = free_ports(4)
        super().__init__(self.port)
        self._tls = tls is not None
        self._tree: ProcessTree | None = None
        for name in ("work", "log"):
            (base / name).mkdir(parents=True, exist_ok=True)
        if config is not None:
            shutil.copy(config, base / "config.json")
        else:
            text = json.dumps(self._configuration(durable, tls), indent=2)
            (base / "config.json").write_text(text)

    def _configuration(self, durable: bool, tls: pathlib.Path | None) -> dict[str, Any]:
        kind = "BDB" if durable else "Memory"
        node = {
            "name": "default",
            "type": kind,
            "defaultVirtualHostNode": "true",
            "virtualHostInitialConfiguration": json.dumps({"type": kind}),
        }
        if durable:
            node["storePath"] = "${qpid.work_dir}/default"
        found: dict[str, Any] = {
            "name": "broker",
            "modelVersion": "9.1",
            "authenticationproviders": [
                {
                    "name": "users",
                    "type": "Plain",
                    "secureOnlyMechanisms": [],
                    "users": [{"name": name, "type": "managed", "password": text} for name, text in USERS.items()],
                },
                {"name": "anonymous", "type": "Anonymous"},
                {"name": "external", "type": "External"},
            ],
            "accesscontrolproviders": [{"name": "rights", "type": "RuleBased", "rules": _rules()}],
            "brokerloggers": [
                {
                    "name": "stdout",
                    "type": "Console",
                    "brokerloginclusionrules": [
                        {"name": "root", "type": "NameAndLevel", "level": "WARN", "loggerName": "ROOT"},
                        {"name": "events", "type": "NameAndLevel", "level": "INFO", "loggerName": "qpid.message.*"},
                    ],
                }
            ],
            "ports": [_port("amqp", self.port, "users"), _port("anonymous", self.anonymous_port, "anonymous")],
            "virtualhostnodes": [node],
        }
        if tls is not None:
            shutil.copy(tls / "ca.pem", self.base / "ca.pem")
            _make_key_store(tls, self.base / "server.p12")
            found["keystores"] = [
                {
                    "name": "server",
                    "type": "FileKeyStore",
                    "keyStoreType": "pkcs12",
                    "storeUrl": str(self.base / "server.p12"),
                    "password": _KEY_STORE_PASSWORD,
                }
            ]
            found["truststores"] = [
                {"name": "clients", "type": "NonJavaTrustStore", "certificatesUrl": str(self.base / "ca.pem")}
            ]
            secure = {"transports": ["SSL"], "keyStore": "server"}
            asking = {"needClientAuth": True, "trustStores": ["clients"]}
            found["ports"] += [
                _port("amqps", self.tls_port, "users") | secure,
                _port("external", self.external_port, "external") | secure | asking,
            ]
        return found

    @property
    def url(self) -> str:
        """The transport URL of the broker, as guest."""
        return f"qpid://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """As ``url``, for the port that speaks TLS; raises ``ValueError`` if the broker has none."""
        if not self._tls:
            raise ValueError("this broker was made without tls=")
        return f"qpid://guest:guest@127.0.0.1:{self.tls_port}/"

    def alive(self) -> bool:
        """Whether the broker's process runs (it may be paused)."""
        return self._tree is not None and self._tree.alive()

    def start(self) -> None:
        """Start the broker, and return when it serves AMQP; raise ``BrokerFailed`` if it does not within 120 s."""
        if self.alive():
            raise RuntimeError("already started")
        log = self.base / "log" / "output"
        begin = log.stat().st_size if log.exists() else 0
        self._tree = ProcessTree(self._command(), {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}, log)
        try:
            poll(lambda: self._ready(begin), _START_SECONDS, "the start of the broker")
        except (TimeoutError, BrokerFailed) as error:
            self.kill()
            raise BrokerFailed(f"Broker-J: {error}\n{self._log_tail()}") from error

    def _command(self) -> list[str]:
        return [
            str(self._java),
            # Small enough for several beside each other. Messages are kept outside of Java's heap.
            "-Xmx256m",
            "-XX:MaxDirectMemorySize=512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # starts in half the time; the tests never ask for what it costs later
            "-XX:-UsePerfData",
            f"-Djava.io.tmpdir={self.base}/work",
            f"-Dderby.stream.error.file={self.base}/log/derby",
            f"-Dqpid.amqp_port={self.port}",
            f"-DQPID_HOME={self._home}",
            f"-DQPID_WORK={self.base}/work",
            "-cp",
            f"{self._home}/lib/*",
            "org.apache.qpid.server.Main",
            # The configuration of the broker is read anew at each start. What a durable virtual host is made of, its
            # queues too, is in its own store.
            "--store-type",
            "Memory",
            "--initial-config-path",
            f"{self.base}/config.json",
        ]

    def _ready(self, begin: int) -> bool:
        if not self.alive():
            raise BrokerFailed("it ended while starting")
        log = self.log(begin)
        if "BRK-1019" in log:
            raise BrokerFailed("it started without a part of it, such as a port or a key store")
        return "BRK-1004" in log  # "ready": its ports are open before, and so are its virtual hosts

    def stop(self) -> None:
        """Shut the broker down cleanly, and return when it has ended; ``BrokerFailed`` if not within 30 s."""
        if self._tree is None or not self._tree.alive():
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        gone = self._tree.wait(_STOP_SECONDS)
        self.hang_up()
        if not gone:
            self.kill()
            raise BrokerFailed(f"Broker-J did not stop in {_STOP_SECONDS} s\n{self._log_tail()}")

    def kill(self) -> None:
        """SIGKILL the broker, and return when it has ended."""
        if self._tree is not None:
            self._tree.kill()
        self.hang_up()

    def restart(self) -> None:
        """``stop()``, then ``start()``."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP): connections stay open, and nothing answers until ``resume()``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused broker go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the broker and remove its data."""
        self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        found = self._tree.pids("java") if self._tree is not None else []
        if not found:
            raise BrokerFailed(f"Broker-J does not run\n{self._log_tail()}")
        send_signal(found[0], number)

    def log(self, begin: int = 0) -> str:
        """What the broker has logged since it was made, from byte ``begin`` on."""
        return (self.base / "log" / "output").read_bytes()[begin:].decode(errors="replace")

    def _log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-100:])


def _rules() -> list[dict[str, Any]]:
    """Who may do what: the first rule that fits holds."""

    def rule(identity: str, operation: str, thing: str, outcome: str) -> dict[str, Any]:
        return {"identity": identity, "operation": operation, "objectType": thing, "outcome": outcome, "attributes": {}}

    return [
        rule("limited", "ACCESS", "VIRTUALHOST", "ALLOW"),
        rule("limited", "ALL", "ALL", "DENY_LOG"),
        rule("ALL", "ALL", "ALL", "ALLOW"),
    ]


def _port(name: str, number: int, provider: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "AMQP",
        "port": number,
        "bindingAddress": "127.0.0.1",
        "authenticationProvider": provider,
        "protocols": ["AMQP_1_0"],
        "virtualhostaliases": [{"name": kind, "type": kind} for kind in ("nameAlias", "defaultAlias", "hostnameAlias")],
    }


def _make_key_store(tls: pathlib.Path, store: pathlib.Path) -> None:
    """What Java reads certificate and key from: of a PEM file Broker-J takes RSA keys only."""
    names = ["-inkey", str(tls / "server.key"), "-in", str(tls / "server.pem"), "-out", str(store)]
    command = ["openssl", "pkcs12", "-export", "-passout", f"pass:{_KEY_STORE_PASSWORD}", *names]
    subprocess.run(command, check=True, capture_output=True)


def _find() -> tuple[pathlib.Path, pathlib.Path]:
    """Java, and the folder of Broker-J."""
    home = pathlib.Path(os.environ.get("MSGBUS_BROKERS_DIR", "/var/lib/msgbus-brokers")) / "qpid"
    java = sorted(pathlib.Path("/").glob(_JAVA))
    # The stamp is written last: without it the install was interrupted.
    stamp = home / ".msgbus-complete"
    if not java or not stamp.exists() or stamp.read_text().strip() != _COMPLETE:
        raise BrokerMissing(
            f"Java 17 in /{_JAVA} and Broker-J in {home} are needed: run "
            f"{HERE.relative_to(HERE.parents[2])}/install qpid"
        )
    if importlib.util.find_spec("proton") is None:
        raise BrokerMissing("python-qpid-proton is needed: install msgbus with the extra qpid")
    return java[0], home
