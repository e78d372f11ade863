"""TLS settings of an upstream made into one ssl context.

Rule: one context an upstream, made when the configuration is applied. Loading the system's
CAs takes 20 to 40 ms, during which nothing else runs in the worker. gevent's context is
named outright, so that a handshake never blocks even where nothing was monkey-patched.
"""

from __future__ import annotations

import ssl
from typing import Any

from gevent import ssl as gssl

from gateway.errors import ConfigError
from gateway.model import TLS12_CIPHERS, TlsSettings


class _Socket(gssl.SSLSocket):  # type: ignore[misc]
    """Closed however its handshake ends. gevent's closes after an OSError alone, so that an exchange
    that is ended from outside meanwhile would leave the descriptor open."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except BaseException:
            self.close()
            raise


def context(settings: TlsSettings) -> Any:
    """A client context; raises ConfigError when a file of `settings` cannot be used."""
    made = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.sslsocket_class = _Socket
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(TLS12_CIPHERS)
    # A renegotiation (TLS 1.2) would make a write wait for a read that another greenlet does.
    made.options |= ssl.OP_NO_RENEGOTIATION
    try:
        if not settings.verify:
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        elif settings.ca is not None:
            made.load_verify_locations(settings.ca)
        else:
            made.load_default_certs()
        if settings.cert is not None:
            made.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls: {error}") from error
    return made
