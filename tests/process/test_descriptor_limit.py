"""Any number of descriptors, and any number a descriptor has, will do."""

from __future__ import annotations

import resource

MANY_OPEN = """
import os, resource, runpy
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard < 0 else min(hard, 4096), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
for fd in held:
    os.set_inheritable(fd, True)
"""
RUN = 'runpy.run_module("srvkit", run_name="__main__", alter_sys=True)\n'
FEW_ALLOWED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


def servers(count, model="threading"):
    return "".join(
        f'[server.s{number}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\nconcurrency = "{model}"\n'
        for number in range(count)
    )


def test_with_1100_files_open_it_starts_reloads_and_is_replaced(managed):
    """`select` knows none of the descriptors that come then."""
    managed.write(servers(1))
    managed.program = managed.start("-c", MANY_OPEN + RUN, "run")
    managed.program.wait_for("listening on ")
    managed.reload()
    assert managed.answer(address=managed.address("s0")).startswith(b"hello ")
    assert managed.program.end() == 0


def test_one_request_is_waited_for_on_a_descriptor_above_1023(run_code):
    code = (
        MANY_OPEN
        + "import srvkit\n"
        + "with srvkit.TCPServer(('127.0.0.1', 0), srvkit.BaseRequestHandler) as server:\n"
        + "    server.timeout = 0.01\n"
        + "    server.handle_timeout = lambda: print('nobody came', server.fileno() > 1023, flush=True)\n"
        + "    server.handle_request()\n"
    )
    program = run_code(code)
    assert program.ended() == 0
    assert program.log == "nobody came True\n"


def test_single_and_embedded_forking_servers_begin_above_1023_too(run_code, managed):
    managed.write(servers(1, "forking") + '[server.b]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\n')
    managed.program = managed.start("-c", MANY_OPEN + RUN, "run", "--single")
    address = managed.program.addresses("s0")[0]
    assert managed.answer(address=address).startswith(b"hello ")
    assert managed.program.end() == 0
    code = (
        MANY_OPEN
        + "import srvkit\n"
        + "class Handler(srvkit.BaseRequestHandler):\n    pass\n"
        + "print(srvkit.serve(Handler, 'tcp://127.0.0.1:0', concurrency='forking').stop())\n"
    )
    program = run_code(code)
    assert program.ended() == 0
    assert program.log == "True\n"


def test_a_supervisor_may_have_as_many_as_its_workers_take(managed):
    """What the system allows at first is for programs that have one client."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 200
    managed.write(servers(8))
    managed.program = managed.start("-c", FEW_ALLOWED + RUN, "run")
    managed.program.wait_for("listening on ", times=8)
    managed.reload()
    assert managed.answer(address=managed.address("s7")).startswith(b"hello ")
    assert managed.program.end() == 0
