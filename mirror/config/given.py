"""What a file gives, made ready for the models: values out of files of their own, texts that stay text, empty lists.

The models do not see the file; what depends on how a value was given is done here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from mirror.config import shapes
from mirror.config.document import NOT_PLAIN, REFUSED, Document, Source, implied_tag, scalar
from mirror.config.plain import NoFile, TooLong, read_plain
from mirror.config.problems import Path as SettingPath

MAX_VALUE = 64 * 1024
"""Longest file that holds one value, in bytes."""


def prepare(document: Document, model: type[BaseModel], base: Path) -> None:
    """Make the data of a document ready for a model. base: the folder relative paths start from.

    Problems are added to the document's.
    """
    if isinstance(document.data, dict):
        _Preparation(document, base).section(document.data, model, ())


class _Preparation:
    """One walk through the data, which it changes."""

    def __init__(self, document: Document, base: Path) -> None:
        self._document = document
        self._base = base

    def section(self, given: dict[str, Any], model: type[BaseModel], path: SettingPath) -> None:
        self._take_files(given, model, path)
        for name, field in model.model_fields.items():
            if name not in given:
                continue
            if given[name] is None and shapes.item(field.annotation) and not shapes.nullable(field.annotation):
                del given[name]  # every line of the list is commented out
            else:
                given[name] = self._value(given[name], field.annotation, (*path, name))

    def _value(self, value: Any, annotation: Any, path: SettingPath) -> Any:
        inner = shapes.item(annotation)
        if inner is not None:
            if isinstance(value, list):
                return [self._value(one, inner, (*path, at)) for at, one in enumerate(value)]
            return self._value(value, inner, path)  # the only one, without the list
        if isinstance(value, dict):
            section, entry = shapes.as_section(annotation), shapes.entry(annotation)
            if section is not None:
                self.section(value, section, path)
            elif entry is not None:
                return {key: self._value(one, entry, (*path, key)) for key, one in value.items()}
            return value
        source = self._document.sources.get(path)
        return value if source is None or value is REFUSED else self._meant(value, source, annotation, path)

    def _meant(self, value: Any, source: Source, annotation: Any, path: SettingPath) -> Any:
        """Return what is meant by a value that is not written in the file: a password may look like a number."""
        if shapes.is_secret(annotation):
            if source.alone:
                return SecretStr(source.text)
            del self._document.sources[path]  # a part of it, or its default, is written in the file
            return value
        return source.text if value is not None and shapes.is_text(annotation) else value

    def _take_files(self, given: dict[str, Any], model: type[BaseModel], path: SettingPath) -> None:
        """Put the value of a file in the place of its name."""
        document = self._document
        for key, name in shapes.from_files(model):
            if key not in given:
                continue
            holder = given.pop(key)
            if holder is None:
                continue
            if given.get(name) is not None:
                self._problem((*path, key), f"gives {name} a second time", f"give {name} or {key}, not both")
                continue
            inner, written = (*path, name), (*path, key)
            document.keys[inner], document.values[inner] = document.keys[written], document.values[written]
            document.named[inner] = written
            shape = model.model_fields[name].annotation
            given[name] = REFUSED if holder is REFUSED else self._out_of_file(holder, shape, inner)

    def _out_of_file(self, holder: Any, annotation: Any, path: SettingPath) -> Any:
        """Return the value that a file holds. annotation: of the setting."""
        written = self._document.named[path]
        if not isinstance(holder, str) or not holder.strip() or "\0" in holder:
            self._problem(written, "expected the path of a file that holds the value")
            return REFUSED
        try:
            file = self._base / Path(holder).expanduser()
            text = _one_line(file)
            value = scalar(implied_tag(text), text)
        except _Unusable as error:
            hint = "expected the path of a file that holds the value, and nothing else"
            if shapes.bare(annotation) is Path:  # a file with the path of a file in it is seldom meant
                hint = f'did you mean "{path[-1]}"?'
            self._problem(written, str(error), hint)
        except RuntimeError:
            self._problem(written, "the home folder that ~ stands for is not known", "write the path in full")
        except ValueError:
            self._problem(written, NOT_PLAIN)
        else:
            self._document.sources[path] = Source(text=text, file=file)
            return value
        return REFUSED

    def _problem(self, path: SettingPath, message: str, suggestion: str = "") -> None:
        """Note a problem. Where the path of a file is asked for people write the value itself: it is not repeated."""
        document = self._document
        document.problems.append(document.problem(document.values[path], path, message, suggestion))


class _Unusable(Exception):
    """A file does not hold a value. The text says why, and nothing of what it holds."""


def _one_line(path: Path) -> str:
    try:
        raw = read_plain(path, MAX_VALUE)
    except NoFile:
        raise _Unusable("is not a file") from None
    except TooLong:
        raise _Unusable(f"the file is larger than {MAX_VALUE} bytes") from None
    except FileNotFoundError:
        raise _Unusable("no such file") from None
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _Unusable("the file is not UTF-8 text") from None
    if not text.strip():
        raise _Unusable("the file is empty")
    if "\n" in text or "\r" in text:
        raise _Unusable("the file has more than one line")
    return text
