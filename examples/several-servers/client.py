"""Throw dice by every way there is:  python client.py [TCP-PORT UDP-PORT UDP-PORT LENGTH-PREFIX-PORT]"""

import os
import socket
import sys
import tempfile

tcp, udp, other_udp, machines = map(int, sys.argv[1:5] or (7121, 7121, 7122, 7122))


def over_stream(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)
        sock.sendall(b"2d6\n")
        with sock.makefile("rb") as answers:
            return answers.readline()


def in_datagram(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as sock, tempfile.TemporaryDirectory() as folder:
        if family == socket.AF_UNIX:
            sock.bind(os.path.join(folder, "me.sock"))
        sock.settimeout(5)
        sock.connect(address)
        sock.send(b"2d6")
        return sock.recv(65535)


def with_length(address):
    with socket.create_connection(address) as sock, sock.makefile("rwb") as stream:
        stream.write(b"\0\x0a" + b"2d1000000\n")
        stream.flush()
        return stream.read(int.from_bytes(stream.read(2), "big"))


print("tcp           ", over_stream(socket.AF_INET, ("127.0.0.1", tcp)).decode().strip())
print("unix          ", over_stream(socket.AF_UNIX, "dice.sock").decode().strip())
print("udp           ", in_datagram(socket.AF_INET, ("127.0.0.1", udp)).decode().strip())
print("udp, the other", in_datagram(socket.AF_INET, ("127.0.0.1", other_udp)).decode().strip())
print("unixgram      ", in_datagram(socket.AF_UNIX, "dice-datagrams.sock").decode().strip())
print("length prefix ", with_length(("127.0.0.1", machines)).decode())
