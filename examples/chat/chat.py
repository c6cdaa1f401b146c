"""Chat: rooms of people who hear each other."""

import threading
from contextlib import suppress

from srvkit import Lines, MessageHandler, hookimpl

HELP = b"* /name NAME   /join ROOM   /who   /quit   anything else is heard by all in the room"


class Rooms:
    """Who is in which room. Shared by all connections, and under `threading` by all threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._rooms = {}  # name: members, in the order in which they came

    def enter(self, room, member):
        with self._lock:
            self._rooms.setdefault(room, []).append(member)

    def close_in_child(self, room, member):
        with self._lock:
            self._rooms[room].remove(member)
            if not self._rooms[room]:
                del self._rooms[room]

    def members(self, room):
        """Return a copy: nobody is written to while the lock is held, since that may take its time."""
        with self._lock:
            return list(self._rooms.get(room, ()))


class Chat(MessageHandler):
    """One member: has a name, is in a room, and says lines to it."""

    framing = Lines()
    rooms = None
    room = "lobby"
    name = "somebody"

    @classmethod
    def startup(cls, server):
        cls.rooms = Rooms()

    def connected(self):
        self.send(HELP)
        self.enter(self.room)

    def handle_message(self, message):
        text = message.decode("utf-8", "replace").strip()
        command, _, argument = text.partition(" ")
        match command:
            case "/name" if argument:
                self.tell_room(f"* {self.name} is now {argument}")
                self.name = argument
            case "/join" if argument:
                self.close_in_child()
                self.enter(argument)
            case "/who":
                names = ", ".join(member.name for member in self.rooms.members(self.room))
                self.send(f"* in {self.room}: {names}".encode())
            case "/quit":
                self.close()
            case _ if command.startswith("/"):
                self.send(HELP)
            case _ if text:
                self.tell_room(f"{self.name}: {text}")

    def disconnected(self, reason):
        self.close_in_child()

    def enter(self, room):
        self.room = room
        self.rooms.enter(room, self)
        self.tell_room(f"* {self.name} has come to {room}")

    def close_in_child(self):
        self.rooms.close_in_child(self.room, self)
        self.tell_room(f"* {self.name} has left {self.room}")

    def tell_room(self, text):
        for member in self.rooms.members(self.room):
            with suppress(ConnectionError):  # gone a moment ago; its own handler will notice
                member.send(text.encode())


@hookimpl
def srvkit_handlers():
    return {"chat": Chat}
