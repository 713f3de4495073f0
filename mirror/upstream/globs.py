"""Globs of names as regular expressions that never go back: a match takes time that grows with the name alone.

``*`` is any part of one component and ``**``, alone between two slashes, any number of components: ``a/**`` is
everything below a, ``**/a`` also a itself, ``a-*`` stays in its component.

What follows a ``*`` is taken where it stands first, and that is not changed any more: whatever fits behind a later
place fits behind the first one as well. Only the end is tied to a place.
"""

from __future__ import annotations

import re


def compile_glob(pattern: str, between: str = "/") -> re.Pattern[str]:
    """Compile a glob for ``fullmatch``. between: the character that separates components."""
    if pattern == "**":
        return re.compile(r".+")
    separator = re.escape(between)
    some = rf"[^{separator}]++"
    first, *others = _runs(pattern.split(between))
    text = separator.join(_component(part, separator) for part in first)
    if not others:
        return re.compile(text)
    text += separator if first else ""
    *middle, last = others
    for run in filter(None, middle):
        text += rf"(?>(?:{some}{separator})*?{separator.join(_component(part, separator) for part in run)}{separator})"
    if last:
        text += rf"(?:{some}{separator})*?{separator.join(_component(part, separator) for part in last)}"
    else:
        text += rf"{some}(?:{separator}{some})*+"
    return re.compile(text)


def _runs(parts: list[str]) -> list[list[str]]:
    """Return the components between one ``**`` and the next."""
    runs: list[list[str]] = [[]]
    for part in parts:
        if part == "**":
            runs.append([])
        else:
            runs[-1].append(part)
    return runs


def _component(part: str, separator: str) -> str:
    """Return the expression of one component; the last of its pieces is tied to the component's end."""
    first, *others = map(re.escape, part.split("*"))
    if not others:
        return first
    *middle, last = others
    text = first + "".join(rf"(?>[^{separator}]*?{piece})" for piece in middle)
    return text + (rf"(?>[^{separator}]*?{last}(?={separator}|\Z))" if last else rf"[^{separator}]*+")
