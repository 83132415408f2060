"""The rank's side of CURVE: its sockets' keys, who may connect to them, and who was refused.

    client ──handshake──▶ socket ──ZAP──▶ authenticator's thread: is the client's key in `allowed_clients`?
                            └──monitor──▶ watching thread: counts and logs the handshakes that failed

ZMQ asks one ZAP handler per context, so a publisher with CURVE has a context of its own. A handshake with a
wrong server key, or without any key, fails before the handler is asked: only the socket's monitor reports it.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from app.events.bad_messages import BadMessages
from app.events.curve import HANDSHAKE_FAILED, CurveConfig, KeyPair, load_rank_keys, read_public_keys

logger = logging.getLogger(__name__)

_STOP_ADDRESS = "inproc://curve-stop"
_PROTOCOL_ERRORS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it uses no CURVE",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has the public key of another server, or a broken key pair",
}


class CurveServer:
    """Encrypts the sockets of one publisher.

    The order is `start`, `secure` for every socket, `watch`; `close` once these sockets are closed.

    Attributes:
        refused_clients: handshakes that failed, for whatever reason.
    """

    def __init__(self, config: CurveConfig, owner: str) -> None:
        """Reads the key files and opens nothing yet; `owner` is named in the log.

        Raises:
            ConfigError: a key file is missing, or isn't what it must be.
        """
        self.refused_clients = 0
        self._keys: KeyPair = load_rank_keys(config)
        self._owner = owner
        self._folder = config.allowed_clients
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._authenticator: ThreadAuthenticator | None = None
        self._stop: zmq.Socket[bytes] | None = None
        self._monitors: dict[zmq.Socket[bytes], BadMessages] = {}
        self._thread: threading.Thread | None = None

    @property
    def public_key(self) -> str:
        """What a client must know of this server: 40 characters of z85."""
        return self._keys.public.decode()

    def start(self) -> zmq.Context[zmq.Socket[bytes]]:
        """Begin to answer who may connect; returns the context in which the sockets must be."""
        self._context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        return self._context

    def secure(self, socket: zmq.Socket[bytes], address: str) -> None:
        """Let only allowed clients connect to `socket`, which isn't bound yet."""
        assert self._authenticator is not None, "not started"
        name = f"{self._owner} at {address}"
        self._authenticator.configure_curve_callback(address, _AllowList(self._folder, name))
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, address)
        # Without this ZMQ lets every client in while there is no ZAP handler, as while closing.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        monitor_address = f"inproc://curve-monitor-{id(socket)}"
        socket.monitor(monitor_address, HANDSHAKE_FAILED)
        monitor = self._pair()
        monitor.setsockopt(zmq.RCVHWM, 0)  # a full monitor would stop its socket
        monitor.connect(monitor_address)
        self._monitors[monitor] = BadMessages(logger, name, "client refused by")

    def watch(self) -> None:
        """Count and log the refused ones until `close`."""
        self._stop, stopped = self._pair(), self._pair()
        stopped.bind(_STOP_ADDRESS)
        self._stop.connect(_STOP_ADDRESS)
        self._thread = threading.Thread(target=self._run, args=(stopped,), name="kv-curve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the threads and the context. A second call does nothing."""
        if self._context is None:
            return
        if self._thread is not None and self._stop is not None:
            self._stop.send(b"")
            self._thread.join()
            self._stop.close(linger=0)
        for monitor in self._monitors:
            monitor.close(linger=0)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()
        self._context = self._authenticator = self._thread = None

    def _pair(self) -> zmq.Socket[bytes]:
        assert self._context is not None, "not started"
        return self._context.socket(zmq.PAIR)

    def _run(self, stopped: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        for source in (stopped, *self._monitors):
            poller.register(source, zmq.POLLIN)
        while stopped not in (ready := dict(poller.poll())):
            for monitor in ready:
                self._record_refusal(monitor)
        stopped.close(linger=0)

    def _record_refusal(self, monitor: zmq.Socket[bytes]) -> None:
        message = parse_monitor_message(monitor.recv_multipart())
        event, value = message["event"], message["value"]
        self.refused_clients += 1
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._monitors[monitor].add(_PROTOCOL_ERRORS.get(value, f"protocol error {value:#x}"))
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._monitors[monitor].add(f"it broke off ({os.strerror(value)}); does it use CURVE?")


class _AllowList:
    """Which clients may connect to one socket: those whose public key is in a *.key file of `folder`.

    The folder is read for every handshake, which are rare: a client that is added gets in, and one that is
    removed doesn't any more, without a restart. A file that can't be read lets no client in.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._refused = BadMessages(logger, name, "client refused by")
        self._unreadable = BadMessages(logger, str(folder), "certificate ignored in")

    def callback(self, domain: str, key: bytes) -> bool:
        """pyzmq's hook: whether `key` (z85) may connect. Must not raise, which would end pyzmq's thread."""
        keys, faults = read_public_keys(self._folder)
        for fault in faults:
            self._unreadable.add(fault)
        if key in keys:
            return True
        self._refused.add(f"its key {key.decode()} is in no *.key file of {self._folder}")
        return False
