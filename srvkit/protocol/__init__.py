"""What bytes mean: framings, conversations, timeouts, the PROXY header, outcomes. Bytes in, bytes out.

Must not know sockets, clocks, threads or loops: whoever reads and writes drives what is here.
"""
