"""TLS: the certificate that the server shows, and its renewal while the server runs."""

import logging
import ssl

from server.config import ConfigError, ServerConfig

logger = logging.getLogger(__name__)


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """The context of the listening port; None where it speaks plain HTTP.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, _no_password)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"The certificate {config.ssl_certfile} and its key cannot be used: {reason}."
        ) from exc
    return context


def renew(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Show the certificate that the files hold now on new connections; open ones go on. Files
    that do not fit together change nothing."""
    assert config.ssl_certfile is not None, "there is a context only with a certificate"
    try:
        # Tried apart first: a certificate without its key would leave the context broken.
        tls_context(config)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, _no_password)
    except (ConfigError, OSError) as exc:
        logger.error("The certificate stays as it is: %s", exc)
        return
    logger.info("Certificate read again.")


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    raise ValueError("its key has a password")
