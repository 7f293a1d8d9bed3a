"""Images by address, as a manifest lists them, in any mixture of stores."""

from __future__ import annotations

import itertools
import posixpath
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maskmill.pipeline.errors import SourceError, StorageError
from maskmill.pipeline.records import Failure, ImageRecord, Shard
from maskmill.pipeline.sources.manifest_rows import bad_line, read_lines
from maskmill.pipeline.sources.names import clean_path, fetch, fetch_ahead
from maskmill.pipeline.sources.selection import ALL_NAMES, NameFilter
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import ReadableStorage, is_key, one_line, open_readable

SUSPECTS = 1000  # ids of equal hashes that are looked at once more: enough to name a few


@dataclass(frozen=True)
class Manifest:
    """The images that the file `uri`, in the folder `storage`, lists: local paths and s3:// addresses.

    A path that is not absolute is relative to the folder of the manifest. Whether there is an image at an address is
    only found in reading; its name does not matter.

    image_id is the column of that name; where there is none, or nothing in it, the `uri` as it is written, without
    `s3://` and cleaned as names in tars are. An id that is there twice is refused: the line is there twice by mistake,
    or the manifest has to tell the two images apart. The addresses of the images go into the plan, so that the manifest
    is read once. What `names` does not keep is left out.
    """

    storage: ReadableStorage
    uri: str
    names: NameFilter = ALL_NAMES

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("manifest", self.uri, self.storage.uri, self.names)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        hashes = array("q")
        entries = self._entries()
        for index in itertools.count():
            some = tuple(itertools.islice(entries, images_per_shard))
            if not some:
                break
            hashes.extend(hash(image_id) for _, image_id, _ in some)
            uris = {image_id: address for _, image_id, address in some}
            yield Shard(index, self.uri, tuple(uris), uris=uris)
        if not hashes:
            raise SourceError(f"{self.uri}: a manifest that lists no images{self.names.applied}")
        self._refuse_repeated_ids(hashes)

    def _entries(self) -> Iterator[tuple[int, str, str]]:
        """Of each line its number, the image_id and the address."""
        buckets: set[str] = set()  # those that can be opened
        for number, uri, given_id in read_lines(self.storage, self.uri.rpartition("/")[2]):
            try:
                address = self._address(uri, buckets)
            except (SourceError, StorageError) as error:
                raise bad_line(self.uri, number, str(error)) from error
            image_id = given_id or clean_path(uri.removeprefix("s3://"))
            if not image_id:
                raise bad_line(self.uri, number, f"{one_line(uri)} names no file")
            if self.names.keeps(image_id):
                yield number, image_id, address

    def _address(self, uri: str, buckets: set[str]) -> str:
        if "://" not in uri:
            store, folder = _split(self.storage.uri)
            store, path = ("", uri) if uri.startswith("/") else (store, f"{folder}/{uri}")
            # On disk `..` may come after a link to a folder: only the disk knows where that leads.
            return store + (path if not store and ".." in path.split("/") else posixpath.normpath(path))
        store, key = _split(uri)
        if store not in buckets:
            open_readable(store)
            buckets.add(store)
        if len(key) < 2:
            raise SourceError(f"{one_line(uri)} is a bucket, not an object")
        return uri

    def _refuse_repeated_ids(self, hashes: array[int]) -> None:
        ordered = np.frombuffer(hashes, np.int64)
        ordered.sort()
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]][:SUSPECTS].tolist())
        if not suspects:
            return
        lines: dict[str, int] = {}
        repeated: dict[str, str] = {}
        for number, image_id, _ in self._entries():
            if hash(image_id) in suspects and lines.setdefault(image_id, number) != number:
                repeated.setdefault(image_id, f"{one_line(image_id)} ({lines[image_id]} and {number})")
        if repeated:
            some = ", ".join(itertools.islice(repeated.values(), 3))
            raise SourceError(
                f"{self.uri}: lines with the same image_id: {some}: "
                "leave them out, or tell them apart by a column image_id"
            )

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        image_ids = shard.image_ids or ()
        addresses = [shard.uris[image_id] for image_id in image_ids]
        for image_id, address, data in zip(image_ids, addresses, fetch_ahead(self._fetch, addresses), strict=True):
            yield ImageRecord(image_id, address, data)

    def _fetch(self, address: str) -> bytes | Failure:
        key = address.removeprefix(f"{self.storage.uri}/")
        if key != address and is_key(key):
            # A folder that vanished with the manifest is no fault of its images.
            return fetch(self.storage, key)
        store, path = _split(address)
        folder = "" if store else _hidden_folder(path)
        key = path.removeprefix(f"{folder}/")
        if not is_key(key):
            return Failure("fetch", f"{one_line(address)}: not an address that can be read: a part is empty or hidden")
        return fetch(open_readable(store or folder or "/"), key)


def _split(address: str) -> tuple[str, str]:
    """The store, "" for the disk, and the path in it, which begins with a slash where there is one."""
    scheme, found, rest = address.partition("://")
    if not found:
        return "", address
    bucket, slash, key = rest.partition("/")
    return f"{scheme}://{bucket}", slash + key


def _hidden_folder(path: str) -> str:
    """As much of a path as no key can hold, which is up to the last hidden folder in it; "" where there is none."""
    *folders, _ = path.split("/")
    hidden = [position for position, folder in enumerate(folders, 1) if folder.startswith(".")]
    return "/".join(folders[: hidden[-1]]) if hidden else ""
