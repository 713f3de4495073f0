"""Addresses a configuration that is refused has reserved: let go at once, not when somebody collects garbage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from mirror.config import Config, Storage
from mirror.server import doors
from mirror.server.generation import make_generation
from mirror.server.generations import Generations
from mirror.server.sockets import Reservation
from mirror.server.spawn import Common
from mirror.worker import StartupError


def configured(root: Path, *listen: str) -> Config:
    return Config.model_validate({"storage": Storage(root=root), "listen": list(listen)})


def test_one_address_that_cannot_be_had_lets_go_of_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Reservation] = []
    reserve = doors.reserve

    def noted(*args: Any, **kwargs: Any) -> Reservation:
        made.append(reserve(*args, **kwargs))
        return made[-1]

    before = doors.open_doors(configured(tmp_path, "127.0.0.1:0"))
    try:
        monkeypatch.setattr(doors, "reserve", noted)
        with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:80"):
            doors.open_doors(configured(tmp_path, "127.0.0.1:0", "localhost:0", "192.0.2.1:80"), before)
        assert {one.held.fileno() for one in made} == {-1}
        assert before[0].reservation.held.fileno() >= 0, "the service still has it"
    finally:
        doors.close_doors(before)


def test_giving_up_a_configuration_lets_go_of_its_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    config = configured(tmp_path, "127.0.0.1:0")
    first = make_generation(config, doors.open_doors(config), taken=set(), folder=folder)
    generations = Generations(cast("Common", None), first)
    config = configured(tmp_path, "127.0.0.1:0", "localhost:0")
    opened = doors.open_doors(config, first.doors)
    try:
        generations.next = make_generation(config, opened, taken=first.numbers(), folder=folder)
        generations.abandon()
        kept, *others = [one.reservation.held.fileno() >= 0 for one in opened]
        assert kept, "the service still has it"
        assert others
        assert not any(others)
    finally:
        generations.end()
        doors.close_doors(opened)
