"""What bytes mean: framings, the PROXY header, and how connections end. Bytes in, bytes out.

Must not know sockets, clocks, threads or loops: whoever reads and writes drives what is here.
"""
