"""Dice: throws them for you."""

import random
import re
from dataclasses import dataclass

from srvkit import Lines, MessageHandler, hookimpl


class Dice(MessageHandler):
    """Answer `2d6` with a throw of two dice of six sides: `3 + 5 = 8`."""

    framing = Lines()

    @dataclass
    class Options:
        largest: int = 100  # sides of a die

    def handle_message(self, message):
        asked = re.fullmatch(rb"([1-9]\d?)d([1-9]\d{0,6})", message.strip())
        if asked is None or int(asked[2]) > self.options.largest:
            return f"say something like 2d6, with up to {self.options.largest} sides".encode()
        count, sides = map(int, asked.groups())
        dice = [random.randint(1, sides) for _ in range(count)]
        return f"{' + '.join(map(str, dice))} = {sum(dice)}".encode()


@hookimpl
def srvkit_handlers():
    return {"dice": Dice}
