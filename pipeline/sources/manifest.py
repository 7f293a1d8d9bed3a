"""Images listed by address in a manifest, in any mix of stores."""

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

SUSPECTS = 1000  # hashes of possibly repeated ids to compare in a second pass: enough for an error message


@dataclass(frozen=True)
class Manifest:
    """The images that the manifest `uri`, a file in the folder `storage`, lists: local paths and s3:// addresses.

    Relative paths start at the folder of the manifest. Files can have any extension; planning does not check that they
    exist.

    image_id is the value of the column image_id. If that is missing or empty, it is the `uri` without `s3://`, cleaned
    by `clean_path`. A repeated id is an error: the line is repeated by mistake, or the two images need different ids.
    The plan stores the addresses of the images, so the manifest is read only once. Images that `names` does not select
    are left out.
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
            raise SourceError(f"{self.uri}: the manifest lists no images{self.names.applied}")
        self._refuse_repeated_ids(hashes)

    def _entries(self) -> Iterator[tuple[int, str, str]]:
        """Yields the line number, image_id and address of each image."""
        buckets: set[str] = set()  # buckets of the addresses checked so far
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
            # On disk `..` can follow a link to a folder, so only the operating system can resolve it.
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
            # If the folder of the manifest disappears, this raises an error of the store, not of each image.
            return fetch(self.storage, key)
        store, path = _split(address)
        folder = "" if store else _hidden_folder(path)
        key = path.removeprefix(f"{folder}/")
        if not is_key(key):
            return Failure(
                "fetch", f"{one_line(address)}: not a readable address: a part of the path is empty or hidden"
            )
        return fetch(open_readable(store or folder or "/"), key)


def _split(address: str) -> tuple[str, str]:
    """Splits an address into the store ("" for the disk) and the path, with its leading slash."""
    scheme, found, rest = address.partition("://")
    if not found:
        return "", address
    bucket, slash, key = rest.partition("/")
    return f"{scheme}://{bucket}", slash + key


def _hidden_folder(path: str) -> str:
    """The path up to its last hidden folder, which cannot be part of a key; "" if no folder is hidden."""
    *folders, _ = path.split("/")
    hidden = [position for position, folder in enumerate(folders, 1) if folder.startswith(".")]
    return "/".join(folders[: hidden[-1]]) if hidden else ""
