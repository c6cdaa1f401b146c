"""examples/chat: what one says in a room all hear, and nobody else, however many threads there are."""

from __future__ import annotations

import threading
from typing import Any

MODELS = ("event", "asyncio", "threading")


def test_rooms_hear_each_other(model: str, run_example: Any) -> None:
    chat = run_example(model)
    ports = chat.ports("chat")
    ada, grace, eve = (chat.client_that_stays(*ports) for _ in range(3))
    for member, name in ((ada, "Ada"), (grace, "Grace"), (eve, "Eve")):
        member.wait_for(r"^\* somebody has come to lobby$")
        member.say(f"/name {name}\n")
        member.wait_for(rf"is now {name}$")
    for member, others in ((ada, "Ada"), (grace, "Ada, Grace")):
        member.say("/join tea\n/who\n")
        member.wait_for(rf"^\* in tea: {others}$")
    ada.say("milk or lemon?\n")
    grace.wait_for(r"^Ada: milk or lemon\?$")
    grace.say("/quit\n")
    ada.wait_for(r"^\* Grace has left tea$")
    assert grace.ended() == 0
    ada.process.stdin.close()  # Ctrl-D
    assert ada.ended() == 0
    eve.say("anybody here?\n")
    eve.wait_for(r"^Eve: anybody here\?$")
    assert "milk" not in eve.log and "Eve" not in grace.log.partition("tea")[2]


def test_many_talk_at_once_and_no_word_is_lost(model: str, run_example: Any) -> None:
    chat = run_example(model)
    ports = chat.ports("chat")
    members = [chat.client_that_stays(*ports) for _ in range(4)]
    for member in members:
        member.say("/join hall\n")
        member.wait_for(r"^\* somebody has come to hall$")
    for number, member in enumerate(members):
        member.say("".join(f"{number} says {word}\n" for word in range(100)))
    for member in members:
        for number in range(4):
            member.wait_for(rf"^somebody: {number} says \d+$", times=100)


def test_one_who_does_not_read_does_not_keep_the_others_from_talking(
    model: str, run_example: Any, client: Any
) -> None:
    chat = run_example(model, "server.chat.limits.write_timeout=0.3")
    deaf = client(chat.address("chat"))
    assert deaf.recv(1)  # it has been there
    speaker = client(chat.address("chat"))
    lines, line = 4000, b"x" * 3000 + b"\n"  # more than the kernel keeps for the deaf one
    talk = threading.Thread(target=speaker.sendall, args=[line * lines])
    talk.start()
    heard = 0
    with speaker.makefile("rb") as file:
        while heard < lines:
            heard += file.readline().endswith(line)
    talk.join()
