"""A request's body that hooks and agents may read before it is forwarded.

Rule: what is read by way of `file` is kept, and `read` gives all of it again before the rest. Reading by `file` is what
an application does by `wsgi.input`; reading by `read` is what the transport does.
"""

from __future__ import annotations

import io
import tempfile
from typing import IO, Any

from gateway.errors import ClientError
from gateway.http.messages import RequestBody
from gateway.net.read_size import PIECE

# Beyond these bytes what is kept goes to a file in the temporary directory, as Flask does with uploads.
IN_MEMORY = 512 * 1024


class BodyFailed(OSError):
    """The request's body cannot be read; an OSError, as that is what applications expect of
    `wsgi.input`. The cause says what happened."""


class RawBody(io.RawIOBase):
    """A request's body as a raw file: each read gives what has arrived."""

    def __init__(self, body: RequestBody, failed: type[BodyFailed] = BodyFailed) -> None:
        self._body = body
        self._failed = failed
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            try:
                self._rest = memoryview(self._body.read())
            except ClientError as error:
                raise self._failed(str(error)) from error
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class KeptBody:
    """A `RequestBody` over another one. `failed`: what `file` raises when the body cannot be had."""

    def __init__(self, body: RequestBody, failed: type[BodyFailed] = BodyFailed) -> None:
        self._body = body
        # What was read by `file`, until somebody calls `stop`.
        self._kept: IO[bytes] | None = None
        self._stopped = False
        self._given = 0
        # Put this in the place of wsgi.input.
        self.file = io.BufferedReader(RawBody(_Keeping(self), failed))

    @property
    def complete(self) -> bool:
        return self._body.complete

    @property
    def expects_continue(self) -> bool:
        return self._body.expects_continue

    def keep(self) -> bytes:
        """The next piece for a reader of `file`. Raises as `RequestBody.read`."""
        piece = self._body.read()
        if piece and not self._stopped:
            if self._kept is None:
                self._kept = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - until `stop`
            self._kept.write(piece)
        return piece

    def read(self, most: int = PIECE) -> bytes:
        """The next piece from the beginning of the body on, whatever was read of it."""
        if self._kept is not None:
            self._kept.seek(self._given)
            piece = self._kept.read(most)
            self._given += len(piece)
            if piece:
                return piece
            self.stop()
        return self._body.read(most)

    def stop(self) -> None:
        """Drop what is kept, and keep nothing any more: a view reads the body for itself, or it is sent."""
        self._stopped = True
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()


class _Keeping:
    """What `file` reads of a KeptBody, as a `RequestBody`."""

    def __init__(self, kept: KeptBody) -> None:
        self._kept = kept

    @property
    def complete(self) -> bool:
        return self._kept.complete

    @property
    def expects_continue(self) -> bool:
        return self._kept.expects_continue

    def read(self, most: int = PIECE) -> bytes:
        return self._kept.keep()
