"""Ask another process for a view of its host: over its socket, or over HTTP."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ConfigError, SandhostError
from .picture import VIEW_PATH
from .records import from_json
from .sharing import places
from .views import VERSION, View

__all__ = ["ask", "ask_url", "find"]

_PATIENCE_S = 10.0
_MOST_BYTES = 64 << 20


def find(name: str | None) -> Path:
    """Return the socket of the process of that number; None: of the only one there is.

    Raises:
        ConfigError: there is none, or there are several to choose from.
    """
    found = places()
    chosen = [place for place in found if name in (None, place.name)]
    if len(chosen) == 1:
        return chosen[0].path
    names = ", ".join(place.name for place in found[:20])
    if found:
        hint = f"--pid takes one of {names}"
    else:
        hint = "a program shows its host with `sandhost.observe.sharing.share(host)`"
    if name is None:
        count = "no process shows its host" if not found else f"{len(found)} processes do"
        raise ConfigError(f"{count}: {hint}")
    raise ConfigError(f"no process {name!r:.40} shows its host: {hint}")


def ask(path: Path) -> View:
    """Return what the host behind a socket looks like now.

    Raises:
        SandhostError: it does not answer, or is of another version.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(str(path))
            text = bytearray()
            while chunk := connection.recv(1 << 20):
                text += chunk
                if len(text) > _MOST_BYTES:
                    raise SandhostError(f"{path} sends more than a view")
        except OSError as error:
            raise SandhostError(f"{path.stem} does not answer: {error}") from error
    if not text:
        raise SandhostError(f"{path.stem} does not let this user look")
    return _view(bytes(text))


def ask_url(url: str, token: str | None = None) -> View:
    """Return what the host behind an HTTP address looks like now; see `picture.VIEW_PATH`.

    Raises:
        ConfigError: it is no such address.
        SandhostError: it does not answer, or is of another version.
    """
    parts = urlsplit(url)
    connections = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in connections or not parts.hostname:
        raise ConfigError(f"{url!r:.80} is no address: write http://HOST:PORT")
    connection = connections[parts.scheme](parts.hostname, parts.port, timeout=_PATIENCE_S)
    path = parts.path if parts.path.strip("/") else VIEW_PATH
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=headers)
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise SandhostError(f"{parts.netloc} does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise SandhostError(f"{parts.netloc} answers {answer.status} {answer.reason}")
    return _view(text)


def _view(text: bytes) -> View:
    view = from_json(View, text)
    if view.version != VERSION:
        raise SandhostError(f"the view is one of version {view.version}, not {VERSION}")
    return view
