"""The sockets that the server listens on."""

import logging
import socket
import ssl

import msgspec

from server.config import ConfigError, ServerConfig

logger = logging.getLogger(__name__)

BACKLOG = 2048
MAX_UNSENT_BYTES = 64 * 1024
"""What the kernel holds of an answer that has not been sent yet."""


def listen(config: ServerConfig) -> socket.socket:
    """A listening socket. Raises `ConfigError` where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as exc:
        reason = exc.strerror or exc
        raise ConfigError(f"Cannot listen on {config.host}:{config.port}: {reason}.") from exc
    # Connections inherit both. An event waits for no other: uvloop sees to that, asyncio does not.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Without this the kernel takes megabytes for a client that does not read, and its stream would
    # go on for all the time it takes to fill them.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
    return listener


def listen_for_probes(config: ServerConfig) -> socket.socket | None:
    """The socket of the port for probes and metrics alone, where there is one."""
    if config.probe_port is None:
        return None
    address = msgspec.structs.replace(config, host=config.probe_host, port=config.probe_port)
    listener = listen(address)
    logger.info("probes and metrics on %s", url_of(listener))
    return listener


def url_of(listener: socket.socket, tls: ssl.SSLContext | None = None) -> str:
    """Where clients on this machine find the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
