"""Who: tells clients under which address they are seen."""

from ipaddress import ip_address

from srvkit import Lines, MessageHandler, hookimpl


class Who(MessageHandler):
    """Tell the client's address and its version of IP, and close."""

    framing = Lines()

    def connected(self):
        host, port = self.client_address[:2]  # IPv6 addresses have two fields more
        address = ip_address(host)
        self.send(f"you are {address}, port {port}, IPv{address.version}".encode())
        self.close()


@hookimpl
def srvkit_handlers():
    return {"who": Who}
