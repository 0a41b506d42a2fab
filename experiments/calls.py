"""Which calls of the runner have done something in a folder of results, and how long each took."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from warm_lightning.pictures import write_file

FILE = "calls.json"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class Calls:
    """The calls of one folder of results."""

    folder: Path

    def known(self) -> list[dict[str, Any]]:
        """All so far."""
        path = self.folder / FILE
        return list(json.loads(path.read_text())) if path.exists() else []

    @contextmanager
    def noted(self, command: str, works: bool) -> Iterator[None]:
        """Note a call that works, before and after: one that is killed has no length."""
        if not works:
            yield
            return
        earlier = self.known()
        call: dict[str, Any] = {"command": command, "began": datetime.now().strftime("%Y-%m-%d %H:%M")}
        call |= {"seconds": None, "ended": False}
        self.write([*earlier, call])
        began = perf_counter()
        try:
            yield
            call["ended"] = True
        finally:
            self.write([*earlier, {**call, "seconds": round(perf_counter() - began, 1)}])

    def write(self, calls: list[dict[str, Any]]) -> None:
        """Keep them."""
        write_file(self.folder / FILE, json.dumps(calls, indent=1).encode())

    def lines(self) -> list[str]:
        """In words, for reports."""
        said = []
        for call in self.known():
            time = "" if call["seconds"] is None else f" after {duration(call['seconds'])}"
            end = f"ended{time}" if call["ended"] else f"stopped{time}" if time else "killed"
            said.append(f"`{call['command']}` of {call['began']}: {end}")
        return said
