"""Prints why tokens weren't cached, and where: `python -m app.misses http://localhost:8000`.

It reads `/router/misses` of a running service. The worst places come first; words stand there only where the
operator allows texts (`routing.misses.texts`). Exits with 1 when the service doesn't answer.
Where the service wants an operator's key, `--key-file` names a file with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import ConfigError
from app.hashing import tenant_label
from app.settings.key_text import read_key

Json = dict[str, Any]
TIMEOUT_S = 10.0
DEFAULT_ROWS = 20


def report(answer: Json, tenant: str | None = None) -> str:
    """The table, for people.

    Args:
        answer: of `/router/misses`.
        tenant: only this tenant's rows, by its name.
    """
    tokens, prompt_tokens = answer["missed_tokens"], answer["prompt_tokens"]
    missed = sum(tokens.values())
    lines = [f"{answer['requests']} requests, {prompt_tokens} prompt tokens, {missed} of them missed"]
    lines += [
        f"  {reason:<10}{count:>14}{count / max(1, prompt_tokens):>8.1%}"
        for reason, count in sorted(tokens.items(), key=lambda item: -item[1])
        if count
    ]
    label = None if tenant is None else tenant_label(tenant)
    rows = [row for row in answer["rows"] if label in (None, row["tenant"])]
    lines += ["", f"{'tokens':>14}{'requests':>10}  {'reason':<10}{'tenant':<10}where", *map(_line, rows)]
    return "\n".join(lines)


def _line(row: Json) -> str:
    numbers = f"{row['tokens']:>14}{row['requests']:>10}"
    return f"{numbers}  {row['reason']:<10}{row['tenant'] or '-':<10}{_where(row)}"


def _where(row: Json) -> str:
    place = row["place"]
    if place is None:
        return "" if row["rank"] is None else f"rank {row['rank']}"
    parts = [f"token {place['token']}"]
    if "message" in place:
        parts.append(f"message {place['message']} ({place['role']})")
    if "line" in place:
        parts.append(f"line {place['line']}")
    if "after" in place:
        before, behind = place["around"]
        parts.append(f"{before!r} [{place['before']!r} → {place['after']!r}] {behind!r}")
    return ", ".join(parts)


def fetch(url: str, limit: int, key: str | None = None) -> Json:
    """The answer of `/router/misses` of the service at `url`, which may want a key.

    Raises:
        OSError: it doesn't answer.
        ValueError: what answers is no kvbeacon, or `url` is none.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/router/misses?limit={limit}", headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        found: Json = json.load(answer)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.misses", description="Why tokens weren't cached.")
    parser.add_argument("url", help="of the service, such as http://localhost:8000")
    parser.add_argument("--tenant", help="only the rows of this tenant")
    parser.add_argument("--limit", type=int, default=DEFAULT_ROWS, help="rows at most (default: %(default)s)")
    parser.add_argument("--key-file", type=Path, help="file with an operator's key, where one is needed")
    given = parser.parse_args(arguments)
    if not given.url.startswith(("http://", "https://")):
        parser.error(f"url = {given.url!r}; it begins with http:// or https://")
    try:
        key = None if given.key_file is None else read_key("--key-file", given.key_file)
        print(report(fetch(given.url, given.limit, key), given.tenant))
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")[:500]
        print(f"{given.url}: HTTP {error.code}: {detail}", file=sys.stderr)
        return 1
    except (ConfigError, OSError, ValueError) as error:
        where = "" if isinstance(error, ConfigError) else f"{given.url}: "
        print(f"{where}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
