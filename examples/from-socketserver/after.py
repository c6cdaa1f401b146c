"""Reverse: a program as many wrote it; takes a port as its argument."""

import srvkit as socketserver


class Reverse(socketserver.StreamRequestHandler):
    """Answer each line backwards."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.strip()[::-1] + b"\n")


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    import sys

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7120
    with Server(("127.0.0.1", port), Reverse) as server:
        print("listening on port", server.server_address[1], flush=True)
        server.serve_forever()
