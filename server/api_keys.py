"""The API keys that are valid now. They can change while the server runs."""

import hashlib
import hmac
import logging

from server.config import ConfigError, ServerConfig, hash_keys, read_key_file

logger = logging.getLogger(__name__)


class ApiKeys:
    """Keys from the environment, which stay, and from a file, which is read again.

    Requests that run are not asked for their key again, so a change loses none.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._file = config.api_key_file
        self._fixed = config.fixed_key_hashes
        self._digests = _digests(config.api_key_hashes)

    @property
    def are_required(self) -> bool:
        return bool(self._digests)

    def find(self, key: bytes) -> bytes | None:
        """The SHA-256 of a key if it is valid."""
        digest = hashlib.sha256(key).digest()
        # Every key is compared, so that the time does not tell which one came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest if any(matches) else None

    def reload(self, *, quietly: bool = False) -> None:
        """Take over what the file says now. One that cannot be used changes nothing.

        Args:
            quietly: Say nothing unless something is wrong.
        """
        if self._file is None:
            return
        try:
            hashes = (*self._fixed, *hash_keys(read_key_file(self._file)))
        except ConfigError as exc:
            logger.error("The API keys stay as they are: %s", exc)
            return
        self._digests = _digests(hashes)
        if not quietly:
            logger.info("API keys read again; valid: %d.", len(self._digests))


def _digests(hashes: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(map(bytes.fromhex, hashes)))
