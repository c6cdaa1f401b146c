"""examples/file-upload: whole files, second tries, and names that lead nowhere else.

`SRVKIT_TEST_LARGE=1` uploads 1 GiB as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

MODELS = ("serial", "threading", "pool", "forking", "gevent")
MIB = 2**20


def sparse(path: Path, size: int) -> Path:
    """Make a file of zeros that takes no room, with something at its end."""
    with path.open("wb") as file:
        file.truncate(size - 3)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header(name: Any, size: Any, sha256: Any) -> bytes:
    return json.dumps({"name": name, "size": size, "sha256": sha256}).encode() + b"\n"


def most_memory(upload: Any) -> int:
    """The most that the server's worker ever had in memory, in bytes."""
    (server,) = json.loads(upload.srvkit("status", "--json"))["servers"]
    (worker,) = server["workers"]
    status = Path(f"/proc/{worker['pid']}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_file_arrives_whole_and_resumes_where_it_was_interrupted(
    model: str, run_example: Any, client: Any
) -> None:
    upload = run_example(model)
    content = bytes(range(256)) * 4096
    (upload.folder / "a file.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with client(upload.address("upload")) as sock, sock.makefile("rb") as answers:
        sock.sendall(header("a file.bin", len(content), digest))
        assert json.loads(answers.readline()) == {"have": 0}
        sock.sendall(content[:500_000])
    upload.program.wait_for("kept 500000 of 1048576 bytes")
    said = upload.client("a file.bin", *upload.ports("upload"))
    assert said.splitlines() == ["resuming at 500000 of 1048576 bytes", "stored as a file.bin"]
    assert (upload.folder / "uploads" / "a file.bin").read_bytes() == content
    assert [path.name for path in (upload.folder / "uploads").iterdir()] == ["a file.bin"]


def test_ctrl_c_in_the_client_is_no_disaster(run_example: Any) -> None:
    upload = run_example()
    sparse(upload.folder / "x", 64 * MIB)
    with socket.create_server(("127.0.0.1", 0)) as slow:  # takes nothing, so that the client cannot finish
        client = upload.client_that_stays("x", str(slow.getsockname()[1]))
        with slow.accept()[0] as sock, sock.makefile("rb") as lines:
            lines.readline()
            sock.sendall(b'{"have": 0}\n')
            client.wait_for(r"\[ +\] +0 %")
            assert client.end(signal.SIGINT) == 1
    assert "the same command goes on from here" in client.log
    assert "Traceback" not in client.log


@pytest.mark.parametrize(
    "size",
    [
        64 * MIB,
        pytest.param(
            1024 * MIB,
            marks=pytest.mark.skipif(
                os.environ.get("SRVKIT_TEST_LARGE") != "1", reason="SRVKIT_TEST_LARGE=1 uploads 1 GiB"
            ),
        ),
    ],
    ids=["64 MiB", "1 GiB"],
)
def test_a_large_file_takes_no_memory(size: int, run_example: Any) -> None:
    upload = run_example("threading")
    small = sparse(upload.folder / "small.bin", 1 * MIB)
    large = sparse(upload.folder / "large.bin", size)
    upload.client(small.name, *upload.ports("upload"))
    before = most_memory(upload) if os.path.exists("/proc/self/status") else 0
    assert upload.client(large.name, *upload.ports("upload")) == "stored as large.bin\n"
    assert sha256_of(upload.folder / "uploads" / "large.bin") == sha256_of(large)
    if before:
        assert most_memory(upload) - before < 8 * MIB


def test_the_progress_goes_to_the_end(run_example: Any) -> None:
    """Also for a file with nothing in it."""
    upload = run_example()
    for name, content in (("empty", b""), ("full", b"x" * 1_000_000)):
        (upload.folder / name).write_bytes(content)
        assert upload.client(name, *upload.ports("upload")) == f"stored as {name}\n"
        assert (upload.folder / "uploads" / name).read_bytes() == content
    client = upload.client_that_stays("full", *upload.ports("upload"))
    client.wait_for(r"\[#{40}\] 100 %")
    assert client.ended() == 0


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/outside", "..", ".", "", ".hidden", "a/b", "a\\b", "a\0b", "a\n", "x" * 62, 7, None],
)
def test_no_name_leads_out_of_the_folder(name: Any, run_example: Any, client: Any) -> None:
    upload = run_example()
    with client(upload.address("upload")) as sock, sock.makefile("rb") as answers:
        sock.sendall(header(name, 3, hashlib.sha256(b"abc").hexdigest()))
        assert "is no name for a file here" in json.loads(answers.readline())["error"]
        assert answers.read() == b""
    assert not (upload.folder / "uploads").exists()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello\n", "must be JSON"),
        (b"[]\n", "must be JSON"),
        (b'{"name": "x"}\n', "must be JSON"),
        (b"\xff\n", "must be JSON"),
        (header("x", -1, "0" * 64), "number of bytes, up to 2147483648"),
        (header("x", True, "0" * 64), "number of bytes"),
        (header("x", 2**40, "0" * 64), "number of bytes"),
        (header("x", 3, "../../x"), "64 hexadecimal digits"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    line: bytes, error: str, run_example: Any, client: Any
) -> None:
    upload = run_example()
    with client(upload.address("upload")) as sock, sock.makefile("rb") as answers:
        sock.sendall(line)
        assert error in json.loads(answers.readline())["error"]


def test_links_and_folders_in_the_way_are_not_followed(run_example: Any) -> None:
    upload = run_example()
    (upload.folder / "outside").write_text("untouched")
    (upload.folder / "uploads").mkdir()
    (upload.folder / "uploads" / "link").symlink_to(upload.folder / "outside")
    (upload.folder / "uploads" / "folder").mkdir()
    for name in ("link", "new"):
        (upload.folder / name).write_text("uploaded")
        upload.client(name, *upload.ports("upload"))
    assert (upload.folder / "outside").read_text() == "untouched"
    assert not (upload.folder / "uploads" / "link").is_symlink()
    (upload.folder / "folder").write_text("uploaded")
    assert "is a folder" in upload.client("folder", *upload.ports("upload"), status=1)


def test_other_bytes_than_announced_are_not_stored(run_example: Any, client: Any) -> None:
    upload = run_example()
    with client(upload.address("upload")) as sock, sock.makefile("rb") as answers:
        sock.sendall(header("x", 3, hashlib.sha256(b"abc").hexdigest()) + b"abd")
        assert json.loads(answers.readline()) == {"have": 0}
        assert "not the bytes" in json.loads(answers.readline())["error"]
    assert list((upload.folder / "uploads").iterdir()) == []


@pytest.mark.parametrize("apart_in", ["threading", "forking"])
def test_two_do_not_write_to_one_file(apart_in: str, run_example: Any, client: Any) -> None:
    upload = run_example(apart_in)
    (upload.folder / "x").write_bytes(b"abc")
    with client(upload.address("upload")) as sock, sock.makefile("rb") as answers:
        sock.sendall(header("x", 3, sha256_of(upload.folder / "x")))
        assert json.loads(answers.readline()) == {"have": 0}
        assert "uploading this very file" in upload.client("x", *upload.ports("upload"), status=1)
        sock.sendall(b"abc")
        assert json.loads(answers.readline()) == {"stored": "x"}
