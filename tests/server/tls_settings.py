"""Settings of servers that speak TLS."""

from __future__ import annotations

TLS = """
[sub.tls]
cert = "server.pem"
client_ca = "ca.pem"
alpn = ["edge/1"]
handshake_timeout = "20s"
[[sub.tls.sni]]
names = ["one.example"]
cert = "one.pem"
[[sub.tls.sni]]
names = ["*.wild.example"]
cert = "wild.pem"
"""
SHORT = """
[sub.limits]
first_byte_timeout = "1s"
idle_timeout = "1s"
write_timeout = "1s"
max_message = 65536
[sub.socket]
send_buffer = 4096
[sub.tls]
cert = "server.pem"
min_version = "1.3"
handshake_timeout = "1s"
"""
