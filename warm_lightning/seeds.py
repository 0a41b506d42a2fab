"""Seeds as users write them."""

import re

from warm_lightning.errors import UserError, check


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" → [0, 1, 2, 3, 7].

    Raises:
        UserError: for anything but non-negative numbers and rising ranges, separated by commas.
    """
    seeds: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise UserError(f"seeds {text!r}: write numbers and ranges separated by commas, such as 0-63 or 1,5,8-11")
        first, last = int(match[1]), int(match[2] or match[1])
        check(first <= last, f"seeds {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        seeds.extend(range(first, last + 1))
    return seeds
