"""A key in a file of its own, for programs that ask a server which wants one."""

from __future__ import annotations

import re
from pathlib import Path

from app.errors import ConfigError

_KEY = re.compile(r"[!-~]{1,512}")


def read_key(setting: str, path: Path) -> str:
    """The key in `path`: one line, white space around it doesn't count.

    Raises:
        ConfigError: it can't be read, or holds something else. The message names `setting`.
    """
    try:
        content = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"{setting} = {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        content = ""
    if not _KEY.fullmatch(content):
        raise ConfigError(
            f"{setting} = {str(path)!r}: one line of 1 to 512 visible ASCII characters is needed"
        )
    return content
