"""Put objects on a small or read-only disk, in a mount namespace: `python -m tests.contract.small_disk`.

Started through `unshare -Urm`, so that it may mount a tmpfs that nobody else sees. Answers with one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from salus.errors import SalusError
from salus.storage import LocalStorage

SIZE = 64 * 1024


def main(folder: Path, what: str) -> dict[str, Any]:
    mount(folder, f"size={SIZE}" if what == "full" else "size=1m,nr_inodes=12")
    storage = LocalStorage(folder)
    answer: dict[str, Any] = {}
    if what == "readonly":
        storage.put_new("a/kept", b"x" * 1000)
        mount(folder, "remount,ro")
        answer["error"] = error_of(storage, "a/refused")
        answer["error of put"] = error_of(storage, "a/refused", replace=True)
        answer["error of a new folder"] = error_of(storage, "b/refused")
    else:
        size, number = (5000 if what == "full" else 1), 0
        while not (refusal := error_of(storage, f"a/{number}", size=size)):
            number += 1
        answer["error"], answer["fitted"] = refusal, number
        if what == "full":  # replacing needs no further inode
            answer["error of put"] = error_of(storage, f"a/{number}", replace=True, size=size)
        answer["whole"] = all(storage.get(f"a/{kept}") == b"x" * size for kept in range(number))
        (folder / "a" / "0").unlink()
        answer["after making room"] = error_of(storage, f"a/{number}", size=size)
    answer["absent"] = storage.get("a/refused") is None
    answer["left behind"] = [path.name for path in (folder / "a").iterdir() if path.name.startswith(".")]
    return answer


def error_of(storage: LocalStorage, key: str, *, replace: bool = False, size: int = 1000) -> list[str]:
    """Type and message of what putting raises; empty where it succeeds."""
    try:
        if replace:
            storage.put({key: b"x" * size})
        else:
            storage.put_new(key, b"x" * size)
    except (SalusError, OSError) as error:
        return [type(error).__name__, str(error)]
    return []


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)  # noqa: S607


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))  # noqa: T201 - this is how it answers
