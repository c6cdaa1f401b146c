"""Type a request over a socket, to both servers:  python client.py [PORT PORT]"""

import socket
import sys

REQUEST = b"GET /index.html HTTP/1.0\r\nHost: 127.0.0.1\r\nX-Mood: curious\r\n\r\n"
ports = [int(port) for port in sys.argv[1:]] or [7115, 7116]

for port in ports:
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as response:
        sock.sendall(REQUEST)
        print(f"---- port {port}")
        print(response.read().decode())  # HTTP/1.0: the response ends with the connection
