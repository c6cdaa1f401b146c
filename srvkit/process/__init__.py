"""Operating-system processes: start servers, watch over them, stop them in good order.

Must not know the command line, nor what handlers and connections do.
"""
