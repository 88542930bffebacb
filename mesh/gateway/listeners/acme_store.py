"""The files of ACME: account key, certificate, challenges, failures.

Owns: their names, their modes (0600 in a directory 0700), answering a challenge from its file.
Leaves to others: the protocol (acme_client), when to renew (acme).

Every gateway of the host reads the same directory: whichever of them gets the authority's request can answer it.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import IO, Final

import msgspec

from mesh.config import Settings
from mesh.config.certificates import ACME_FILE, Certificate, acme_dir, read
from mesh.errors import ConfigError, UnknownRoute
from mesh.gateway.listeners.temporary import write_private
from mesh.gateway.reply import Reply

#: Where an authority looks for the answer to a challenge (RFC 8555, section 8.3).
CHALLENGES: Final = "/.well-known/acme-challenge/"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Failures(msgspec.Struct):
    """Failed attempts since the last certificate.

    Attributes:
        count: of them.
        next_at: the earliest time of the next attempt, by the wall clock.
    """

    count: int = 0
    next_at: float = 0.0


class AcmeStore:
    """The directory of one gateway's ACME files."""

    def __init__(self, settings: Settings) -> None:
        self.dir = acme_dir(settings)
        self.account_key: Path = self.dir / "account.pem"
        self.certificate_file: Path = self.dir / ACME_FILE
        self._challenges = self.dir / "challenges"
        self._failures = self.dir / "failures.json"

    def prepare(self) -> None:
        """Create the directories.

        Raises:
            ConfigError: they cannot be created.
        """
        try:
            for each in (self.dir, self._challenges):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.dir.chmod(0o700)
        except OSError as exc:
            raise ConfigError(f"gateway.acme.dir: {self.dir} cannot be created: {exc.strerror}") from exc

    def hold(self) -> IO[str] | None:
        """The right of this process, and of no other, to ask for a certificate; None when another one has it.

        It ends when the returned file is closed, or with the process.
        """
        file = (self.dir / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    # --- the certificate ------------------------------------------------------------------------

    def certificate(self) -> Certificate | None:
        """The current certificate; None when there is none yet, or its file is broken."""
        try:
            return read(self.certificate_file)
        except ConfigError:
            return None

    def save(self, key: bytes, chain: bytes) -> None:
        """Replace certificate and key: one file, so that no interruption leaves a certificate with another key."""
        write_private(self.certificate_file, chain + key)
        self._failures.unlink(missing_ok=True)

    # --- failures -------------------------------------------------------------------------------

    def failures(self) -> Failures:
        """The failures since the last certificate: they outlive a restart, because authorities limit attempts."""
        try:
            return msgspec.json.decode(self._failures.read_bytes(), type=Failures)
        except (OSError, msgspec.DecodeError):
            return Failures()

    def fail(self, failures: Failures) -> None:
        """Note a failure."""
        write_private(self._failures, msgspec.json.encode(failures))

    # --- challenges -----------------------------------------------------------------------------

    def challenge(self, token: str, answer: str) -> Path:
        """Make the answer to a challenge available; returns its file, which the caller removes.

        Raises:
            ValueError: the authority's token is malformed.
        """
        if _TOKEN.fullmatch(token) is None:
            raise ValueError("the token of the challenge is malformed")
        path = self._challenges / token
        write_private(path, answer.encode())
        return path

    def reply(self, raw_path: str) -> Reply:
        """The answer to an authority's request.

        Raises:
            UnknownRoute: there is no such challenge.
        """
        token = raw_path.partition("?")[0].removeprefix(CHALLENGES)
        if _TOKEN.fullmatch(token) is not None:
            try:
                return Reply((self._challenges / token).read_bytes(), "application/octet-stream")
            except OSError:
                pass
        raise UnknownRoute("there is no such challenge")

    def sweep(self) -> None:
        """Remove the challenges of attempts that were interrupted. Call it with the right to ask."""
        with os.scandir(self._challenges) as found:
            for each in found:
                Path(each.path).unlink(missing_ok=True)
