"""Environment files: one NAME=value on each line.

Owns: reading them. Leaves to others: which to read ([services.NAME] env_file), and setting variables (cli.confine).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError

_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")


def read_env_file(path: Path) -> dict[str, str]:
    """The variables in a file: NAME=value, one on each line; `export` and quotes are optional, # begins a comment.

    Raises:
        ConfigError: the file cannot be read, or a line has another form. The message gives the line's number but not
            its text, which may be secret.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path}: the environment file cannot be read: {why}") from exc
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}:{number}: not NAME=value")
        found[match[1]] = _unquoted(match[2], f"{path}:{number}")
    return found


def _unquoted(value: str, where: str) -> str:
    quote = value[:1]
    if quote in ("'", '"'):
        end = value.find(quote, 1)
        rest = value[end + 1 :].strip()
        if end < 0 or (rest and not rest.startswith("#")):
            raise ConfigError(f"{where}: the quote at its beginning is not closed at its end")
        return value[1:end]
    return re.split(r"\s#", value, maxsplit=1)[0].rstrip()
