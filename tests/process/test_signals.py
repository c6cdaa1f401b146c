"""Signals are told as they came, and none is lost."""

from __future__ import annotations

import os
import select
import signal

import pytest

from srvkit.process.signals import Signals


def test_each_kind_is_told_once_with_how_often_it_came_in_order() -> None:
    told: list[tuple[int, int]] = []
    with Signals(signal.SIGUSR1, signal.SIGTTIN) as signals:
        for number in (signal.SIGTTIN, signal.SIGUSR1, signal.SIGTTIN):
            os.kill(os.getpid(), number)
        signals.hand_out(lambda number, times: told.append((number, times)))
        signals.hand_out(lambda number, times: told.append((number, times)))
    assert told == [(signal.SIGTTIN, 2), (signal.SIGUSR1, 1)]


def test_what_could_not_be_obeyed_comes_once_more() -> None:
    told: list[int] = []

    def obey(number: int, times: int) -> None:
        if number == signal.SIGUSR2 and len(told) == 1:
            raise MemoryError
        told.append(number)

    with Signals(signal.SIGUSR1, signal.SIGUSR2) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(MemoryError):
            signals.hand_out(obey)
        assert select.select([signals.fileno()], [], [], 0)[0]
        told.append(0)
        signals.hand_out(obey)
        assert not select.select([signals.fileno()], [], [], 0)[0]
    assert told == [signal.SIGUSR1, 0, signal.SIGUSR2]


def test_what_was_read_and_could_not_be_kept_comes_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(bytearray):
        fails = 1

        def __iadd__(self, more: object) -> Short:  # type: ignore[misc,override]
            if self.fails:
                self.fails -= 1
                raise MemoryError
            self.extend(more)  # type: ignore[arg-type]
            return self

    told: list[int] = []
    with Signals(signal.SIGUSR1) as signals:
        monkeypatch.setattr(signals, "_pending", Short())
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(MemoryError):
            signals.hand_out(lambda number, times: told.append(number))
        assert select.select([signals.fileno()], [], [], 0)[0]
        signals.hand_out(lambda number, times: told.append(number))
    assert told == [signal.SIGUSR1]
