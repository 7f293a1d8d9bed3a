"""One behaviour suite for every Storage, and what only the local disk has."""

import errno
import multiprocessing
import os
import pickle
import platform
import re
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.storage import (
    PROBE_PREFIX,
    LocalStorage,
    Storage,
    StoredObject,
    open_storage,
    prove_create_if_absent,
)
from maskmill.pipeline.storage.local import rename_noreplace, sync_folder

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy


def new_local_storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"), make=True)


@pytest.fixture(
    params=[
        "disk",
        "renaming disk",
        pytest.param("s3", marks=pytest.mark.s3),
        pytest.param("faults", marks=pytest.mark.s3),
    ]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty store of every kind there is, the last behind a network that fails every fifth request."""
    if request.param == "disk":
        return new_local_storage(tmp_path)
    if request.param == "renaming disk":
        (tmp_path / "store").mkdir()
        return LocalStorage(tmp_path / "store", placing=(no_links, rename_noreplace))
    from maskmill.pipeline.storage.s3 import S3Storage
    from testing.s3_servers import HASTE, NOISY, random_faults

    bucket: str = request.getfixturevalue("bucket")
    proxy: FaultProxy = request.getfixturevalue("proxy")
    if request.param == "faults":
        proxy.behave(random_faults(0.2, zlib.crc32(request.node.name.encode()), NOISY))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    return S3Storage(bucket, "some/prefix", proxy.url, patience=HASTE)


def no_links(source: Path, target: Path) -> None:
    """What FUSE mounts of object stores and exFAT say to `os.link`."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def no_flags(source: Path, target: Path) -> None:
    """What NFS says to `renameat2` with RENAME_NOREPLACE."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [item.key for item in storage.list(prefix)]


# Every storage.


def test_create_writes_the_object_when_it_is_absent(storage: Storage):
    assert storage.create("masks/part-00000.parquet", b"first")
    assert storage.read("masks/part-00000.parquet") == b"first"


def test_create_writes_nothing_when_the_object_is_there(storage: Storage):
    storage.create("part", b"first")
    assert not storage.create("part", b"second")
    assert storage.read("part") == b"first"


def test_create_tells_an_empty_object_from_an_absent_one(storage: Storage):
    assert storage.create("empty", b"")
    assert not storage.create("empty", b"x")
    assert list(storage.list()) == [StoredObject("empty", 0)]


def test_put_replaces_the_whole_object(storage: Storage):
    storage.put("images/part", b"a long first version")
    storage.put("images/part", b"short")
    assert storage.read("images/part") == b"short"


@pytest.mark.parametrize("chunks", [[], [b""], [b"one"], [b"one", b"", b" and ", b"two"]])
def test_put_chunks_replaces_the_object_by_all_chunks(storage: Storage, chunks: list[bytes]):
    storage.put("folder/key", b"a long first version")
    storage.put_chunks("folder/key", iter(chunks))
    assert storage.read("folder/key") == b"".join(chunks)


def test_put_chunks_changes_nothing_when_the_chunks_raise(storage: Storage):
    def chunks(size: int) -> Iterator[bytes]:
        yield bytes(size)
        yield bytes(size)
        raise ZeroDivisionError

    storage.put("key", b"before")
    for size in (1, 6 << 20):
        with pytest.raises(ZeroDivisionError):
            storage.put_chunks("key", chunks(size))
        with pytest.raises(ZeroDivisionError):
            storage.put_chunks("new", chunks(size))
    assert list(storage.list()) == [StoredObject("key", 6)]


def test_open_streams_the_object(storage: Storage):
    storage.put("key", b"0123456789")
    with storage.open("key") as stream:
        assert stream.read(4) == b"0123"
        assert stream.read() == b"456789"


def test_exists_follows_create_and_delete(storage: Storage):
    assert not storage.exists("a/b")
    storage.create("a/b", b"")
    assert storage.exists("a/b")
    storage.delete("a/b")
    assert not storage.exists("a/b")


def test_exists_is_false_for_the_first_part_of_a_key(storage: Storage):
    storage.create("a/b", b"")
    assert not storage.exists("a")


def test_delete_does_nothing_when_the_object_is_absent(storage: Storage):
    storage.delete("a/b")
    assert keys(storage) == []


def test_list_is_sorted_by_key_across_folders(storage: Storage):
    expected = ["B", "a.jpg", "a.jpg.d/x", "a/b.jpg", "a/é.jpg", "a0.jpg", "ab"]
    for key in reversed(expected):
        storage.create(key, key.encode())
    assert list(storage.list()) == [StoredObject(key, len(key.encode())) for key in expected]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("masks/", ["masks/part-0", "masks/part-1"]),
        ("masks/part-1", ["masks/part-1"]),
        ("ma", ["masks/part-0", "masks/part-1", "masks2/part-0"]),
        ("absent/", []),
        ("masks/part-1/", []),
    ],
)
def test_list_returns_what_starts_with_the_prefix(storage: Storage, prefix: str, expected: list[str]):
    for key in ("images/part-0", "masks/part-0", "masks/part-1", "masks2/part-0"):
        storage.create(key, b"")
    assert keys(storage, prefix) == expected


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "./a", ".hidden", "a\0b"])
def test_keys_that_are_no_clean_relative_path_are_refused(storage: Storage, key: str):
    calls: list[Callable[[], object]] = [
        lambda: storage.create(key, b""),
        lambda: storage.put(key, b""),
        lambda: storage.read(key),
        lambda: storage.exists(key),
        lambda: storage.delete(key),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="not a key"):
            call()


def test_reading_raises_one_line_when_the_object_is_absent(storage: Storage):
    for read in (storage.read, storage.open):
        with pytest.raises(ObjectError) as caught:
            read("a/absent")
        assert "absent" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_uri_and_key_make_the_address_of_an_object(storage: Storage):
    storage.create("a/b", b"x")
    assert open_storage(storage.uri).read("a/b") == b"x"


def test_storage_works_when_it_was_pickled(storage: Storage):
    storage.create("a", b"x")
    travelled: Storage = pickle.loads(pickle.dumps(storage))
    assert travelled.read("a") == b"x"
    assert travelled.uri == storage.uri


def create_many(storage: Storage, keys: list[str], name: bytes, start: Barrier, winners: Path) -> None:
    start.wait()
    won = [key for key in keys if storage.create(key, name * 50_000)]
    winners.write_text("\n".join(won))


def test_exactly_one_of_two_processes_creates_each_key(storage: Storage, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    contested = [f"masks/part-{index:05d}" for index in range(100)]
    outcomes = {b"a": tmp_path / "a", b"b": tmp_path / "b"}
    racers = [
        context.Process(target=create_many, args=(storage, contested, name, start, winners))
        for name, winners in outcomes.items()
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    won = {name: winners.read_text().split() for name, winners in outcomes.items()}
    assert sorted(won[b"a"] + won[b"b"]) == contested
    for name, created in won.items():
        assert all(storage.read(key) == name * 50_000 for key in created)
    assert keys(storage) == contested


def test_proof_passes_and_leaves_nothing_when_the_store_is_sound(storage: Storage):
    prove_create_if_absent(storage)
    assert keys(storage) == []


def test_sweep_leaves_what_is_young(storage: Storage):
    for key in ("masks/part", PROBE_PREFIX + "a" * 32):
        storage.create(key, b"x")
    storage.sweep()
    assert len(keys(storage)) == 2


# A store that is not sound.


@dataclass(frozen=True)
class OverwritingStorage(LocalStorage):
    """A store that ignores the condition, as some object stores do; it answers as told."""

    answer: bool = True

    def create(self, key: str, data: bytes) -> bool:
        first = not self.exists(key)
        self.put(key, data)
        return first or self.answer


@pytest.mark.parametrize("answer", [True, False])
def test_proof_fails_when_the_store_overwrites(tmp_path: Path, answer: bool):
    storage = OverwritingStorage(tmp_path, answer)
    with pytest.raises(StorageError, match="does not honour create-if-absent"):
        prove_create_if_absent(storage)
    assert keys(storage) == []


# The local disk.


def test_open_storage_makes_the_folder_only_when_told(tmp_path: Path):
    uri = str(tmp_path / "a" / "b")
    with pytest.raises(StorageError, match="No such file"):
        keys(open_storage(uri))
    assert not (tmp_path / "a").exists()
    assert keys(open_storage(uri, make=True)) == []


@pytest.mark.parametrize("uri", ["gs://user:password@bucket", "file:///tmp"])
def test_open_storage_says_what_there_is_when_given_another_scheme(uri: str):
    with pytest.raises(StorageError, match="give a path or s3://bucket/prefix") as caught:
        open_storage(uri)
    assert "password" not in str(caught.value)


def test_open_storage_raises_when_the_path_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="exists"):
        open_storage(str(tmp_path / "file"), make=True)
    with pytest.raises(StorageError, match="Not a directory"):
        open_storage(str(tmp_path / "file")).create("x", b"")


def test_relative_path_means_the_same_when_the_working_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("store", make=True)
    monkeypatch.chdir("/")
    assert storage.create("a", b"")
    assert (tmp_path / "store" / "a").exists()


def test_one_file_at_fault_is_told_from_a_folder_at_fault(tmp_path: Path):
    storage = new_local_storage(tmp_path)
    (tmp_path / "store" / "loop").symlink_to("loop")
    (tmp_path / "store" / "folder").mkdir()
    (tmp_path / "store" / "file").write_bytes(b"")
    for key in ("absent", "loop", "folder", "file/below", "x" * 300):
        with pytest.raises(ObjectError, match="/store/"):
            storage.read(key)
    with pytest.raises(ObjectError, match="Input/output error"):  # no memory is at address 0
        LocalStorage(Path("/proc/self")).read("mem")
    with pytest.raises(StorageError, match="name too long") as caught:
        storage.create("x" * 300, b"")
    assert not isinstance(caught.value, ObjectError)


def test_every_call_raises_when_the_folder_vanished(tmp_path: Path):
    storage = new_local_storage(tmp_path)
    (tmp_path / "store").rmdir()
    calls: list[Callable[[], object]] = [
        lambda: storage.create("masks/part", b""),
        lambda: storage.create("part", b""),
        lambda: storage.put("images/part", b""),
        lambda: storage.read("part"),
        lambda: keys(storage),
        lambda: keys(storage, "masks/"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="/store: No such file or directory") as caught:
            call()
        assert not isinstance(caught.value, ObjectError)
    assert not (tmp_path / "store").exists()


def die_writing(storage: Storage) -> None:
    """Is killed by the signal that the system sends at the file size limit, with the file half written."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    storage.create("part", bytes(100_000))


def test_nothing_is_seen_of_an_object_when_its_writer_was_killed(tmp_path: Path):
    storage = new_local_storage(tmp_path)
    writer = multiprocessing.get_context("spawn").Process(target=die_writing, args=(storage,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGXFSZ
    assert len(os.listdir(tmp_path / "store")) == 1
    assert keys(storage) == []
    assert storage.create("part", b"whole")
    assert keys(storage) == ["part"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Makes writes fail past `size` bytes, as a full disk does (Python ignores the signal that comes with it)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_writing_raises_and_leaves_nothing_when_the_disk_takes_no_more(tmp_path: Path):
    storage = new_local_storage(tmp_path)
    storage.put("old", b"old")
    for write in (storage.create, storage.put):
        with file_size_limit(1000), pytest.raises(StorageError) as caught:
            write("new", bytes(100_000))
        assert "\n" not in str(caught.value)
    with file_size_limit(1000), pytest.raises(StorageError):
        storage.put("old", bytes(100_000))
    assert os.listdir(tmp_path / "store") == ["old"]
    assert storage.read("old") == b"old"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only who may mount file systems can have a full or read-only disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_run_goes_on_when_a_full_disk_has_room_again(disk: Path):
    storage = LocalStorage(disk)
    storage.put("images/old", b"old")
    (disk / "ballast").write_bytes(bytes(900_000))
    for write in (storage.create, storage.put):
        with pytest.raises(StorageError, match="new: No space left on device") as caught:
            write("masks/new", bytes(500_000))
        assert not isinstance(caught.value, ObjectError)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.put("images/old", bytes(500_000))
    assert keys(storage) == ["ballast", "images/old"]
    assert storage.read("images/old") == b"old"
    assert os.listdir(disk / "masks") == []
    (disk / "ballast").unlink()
    assert storage.create("masks/new", bytes(500_000))


def test_writing_raises_and_reading_works_when_the_disk_is_read_only(disk: Path):
    storage = LocalStorage(disk)
    storage.put("old", b"old")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    calls: list[Callable[[], object]] = [
        lambda: storage.create("new", b""),
        lambda: storage.create("masks/new", b""),
        lambda: storage.put("old", b"new"),
        lambda: storage.delete("old"),
        lambda: prove_create_if_absent(storage),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="Read-only file system") as caught:
            call()
        assert not isinstance(caught.value, ObjectError)
    storage.sweep()
    assert storage.read("old") == b"old"
    assert keys(storage) == ["old"]


def test_sweep_removes_only_old_leftovers(tmp_path: Path):
    storage = new_local_storage(tmp_path)
    old, young = [f"masks/.{digit * 32}.tmp" for digit in "ab"]
    probe, part, other = PROBE_PREFIX + "c" * 32, "masks/part", "masks/.notes.tmp"
    (tmp_path / "store" / "masks").mkdir()
    for name in (old, young, probe, part, other):
        (tmp_path / "store" / name).write_bytes(b"")
    for name in (old, probe, part, other):
        os.utime(tmp_path / "store" / name, (0, 0))
    storage.sweep()
    left = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert left == {young, part, other}


def test_disk_with_neither_hard_links_nor_exclusive_rename_is_refused_by_name(tmp_path: Path):
    storage = LocalStorage(tmp_path, placing=(no_links, no_flags))
    with pytest.raises(StorageError, match=f"{tmp_path}: .* neither hard links .*RENAME_NOREPLACE.*choose another"):
        prove_create_if_absent(storage)
    assert os.listdir(tmp_path) == []


# Runs in a process of its own, in which the kernel refuses a list of system calls with EPERM.
REFUSING = """
import ctypes, struct, sys
from maskmill.pipeline.storage import open_storage
numbers, path = eval(sys.argv[1]), sys.argv[2]
code = [(0x20, 0, 0, 0)]  # load the number of the system call
code += [(0x15, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]  # equal: to the last line
code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)]  # allow; refuse with EPERM
instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit("no filter")
storage = open_storage(path, make=True)
try:
    print(storage.create("a/b", b"first"), storage.create("a/b", b"second"), storage.read("a/b"))
except Exception as error:
    print(type(error).__name__, error)
"""
LINK, LINKAT, RENAMEAT2 = 86, 265, 316  # of Linux on x86-64


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="numbers of system calls")
@pytest.mark.parametrize(
    ("refused", "answer"),
    [((LINK, LINKAT), "True False b'first'"), ((LINK, LINKAT, RENAMEAT2), "StorageError .*neither hard links")],
)
def test_create_works_as_far_as_it_can_when_the_kernel_refuses_hard_links(
    tmp_path: Path, refused: tuple[int, ...], answer: str
):
    command = [sys.executable, "-c", REFUSING, str(refused), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True)
    if "no filter" in done.stderr:
        pytest.skip("this kernel has no seccomp filters")
    assert re.fullmatch(answer + ".*\n", done.stdout), done


def test_folders_that_cannot_be_synced_are_no_error():
    sync_folder(Path("/proc"))  # which answers EINVAL, as some network and FUSE file systems do


def test_writing_raises_when_the_folder_takes_no_files():
    with pytest.raises(StorageError, match="/proc/x"):
        LocalStorage(Path("/proc")).create("x", b"")


def test_list_hides_dotfiles_and_devices_and_follows_links(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.jpg").write_bytes(b"far")
    root = tmp_path / "store"
    (root / ".git").mkdir(parents=True)
    (root / ".git" / "x.jpg").write_bytes(b"")
    (root / "._photo.jpg").write_bytes(b"")
    os.mkfifo(root / "pipe.jpg")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(outside)
    (root / "linked.jpg").symlink_to(outside / "far.jpg")
    (root / "nowhere.jpg").symlink_to(root / "absent.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    storage = open_storage(str(root))
    assert list(storage.list()) == [
        StoredObject("away/far.jpg", 3),
        StoredObject("linked.jpg", 3),
        StoredObject("nowhere.jpg", 0),
        StoredObject("self.jpg", 0),
    ]
    assert storage.read("linked.jpg") == storage.read("away/far.jpg") == b"far"
    with pytest.raises(StorageError, match="No such file"):
        storage.read("nowhere.jpg")


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ({"store/b": "store/a"}, ["a/1.jpg", "a/deep/2.jpg"]),  # a folder below the root has its own name
        ({"store/A": "store/a/deep"}, ["a/1.jpg", "a/deep/2.jpg"]),
        ({"store/a/up": "store"}, ["a/1.jpg", "a/deep/2.jpg"]),  # cycles
        ({"store/a/up": "store/a", "store/a/deep/up": "store/a"}, ["a/1.jpg", "a/deep/2.jpg"]),
        ({"far/back": "store", "far/self": "far", "store/far": "far"}, ["a/1.jpg", "a/deep/2.jpg", "far/x/3.jpg"]),
        ({"store/up": "."}, ["a/1.jpg", "a/deep/2.jpg", "up/far/x/3.jpg"]),
        ({"store/z": "far", "store/y": "far"}, ["a/1.jpg", "a/deep/2.jpg", "y/x/3.jpg"]),  # the first link in order
        ({"store/y": "far/x", "store/z": "far"}, ["a/1.jpg", "a/deep/2.jpg", "y/3.jpg"]),
        ({"store/y": "far", "store/z": "far/x"}, ["a/1.jpg", "a/deep/2.jpg", "y/x/3.jpg"]),
        ({"store/y": "store/z", "store/z": "far"}, ["a/1.jpg", "a/deep/2.jpg", "y/x/3.jpg"]),  # a link to a link
        ({"store/y": "store/.cache"}, ["a/1.jpg", "a/deep/2.jpg", "y/4.jpg"]),  # hidden under its own name
    ],
)
def test_list_follows_linked_folders_and_gives_each_folder_once(
    tmp_path: Path, links: dict[str, str], expected: list[str]
):
    for name in ("store/a/1.jpg", "store/a/deep/2.jpg", "far/x/3.jpg", "store/.cache/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    storage = open_storage(str(tmp_path / "store"))
    assert keys(storage) == expected
    assert all(storage.read(key).decode().endswith(key[-5:]) for key in expected)


def test_list_asks_before_it_enters_a_folder(tmp_path: Path):
    for name in ("a/1.jpg", "b/2.jpg", ".c/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    asked: list[str] = []

    def skip(key: str) -> bool:
        asked.append(key)
        return key == "a/"

    assert [item.key for item in open_storage(str(tmp_path)).list(skip=skip)] == ["4.jpg", "b/2.jpg"]
    assert asked == [".c/", "4.jpg", "a/", "b/", "b/2.jpg"]


def test_link_is_an_object_and_stays_when_it_is_made_again(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    storage = LocalStorage(tmp_path / "store")
    storage.make()
    for _ in range(2):
        storage.link("images/photo.jpg", str(tmp_path / "photo.jpg"))
    assert storage.read("images/photo.jpg") == b"photo"
    assert (tmp_path / "store/images/photo.jpg").is_symlink()


def test_file_name_that_is_not_utf8_has_a_key_that_reads_it(tmp_path: Path):
    root = os.fsencode(tmp_path)
    with open(os.path.join(root, b"caf\xe9.jpg"), "wb") as stream:
        stream.write(b"x")
    storage = open_storage(str(tmp_path))
    assert keys(storage) == ["caf\\xe9.jpg"]
    assert storage.read("caf\\xe9.jpg") == b"x"


def test_names_that_look_like_others_have_keys_of_their_own(tmp_path: Path):
    names = [b"caf\xe9.jpg", b"caf\\xe9.jpg", b"caf\\x5cxe9.jpg", b"a\\b.jpg", b"\xff\\xff/a\\x5c.jpg"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(name)
    storage = LocalStorage(tmp_path)
    assert {storage.read(key) for key in keys(storage)} == set(names)
    assert len(set(keys(storage))) == len(names)


def test_pipe_is_no_object_and_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ObjectError, match="not a file"):
        LocalStorage(tmp_path).read("pipe.jpg")
