"""Writes a selection of a run in another format: which files, in which order, so that a killed export can be resumed.

Each file is written atomically and depends on nothing but the selection. So an export is resumed by writing the files
that are missing. `_export` records what an export consists of; it is refused to mix two exports.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, Literal

from maskmill.annotations.image_files import link_targets, read_image_files
from maskmill.annotations.selection import SelectedImage, SelectedMasks, Selection, read_masks
from maskmill.pipeline.errors import ConfigError, RunMismatchError
from maskmill.pipeline.ledger import REQUESTS_AT_ONCE, is_inside
from maskmill.pipeline.storage import LocalStorage, Storage

ImagesMode = Literal["copy", "link", "none"]
EXPORT_KEY = "_export"  # no extension: readers of a format must not take it for one of its files


@dataclass(frozen=True, eq=False)
class ExportImage:
    """One image as a format writes it."""

    image: SelectedImage
    masks: SelectedMasks
    data: bytes | None  # the image file; None unless it is part of a file of the format


@dataclass(frozen=True)
class ExportFile:
    """One file of an export."""

    key: str
    count: int  # of its images
    images: Callable[[], Iterator[SelectedImage]]  # consecutive images of the selection
    encode: Callable[[Iterator[ExportImage]], Iterable[bytes]]  # yields the content; uses each image once, in order
    with_data: bool = True  # whether image files are part of it, if the format has them inside and they are wanted


def file_per_image(
    selection: Selection, key: Callable[[SelectedImage], str], encode: Callable[[ExportImage], bytes]
) -> Iterator[ExportFile]:
    """The files of a format that has one file per image."""
    for image in selection.images():
        yield ExportFile(key(image), 1, partial(iter, (image,)), lambda images: map(encode, images))


def file_per_images(
    selection: Selection,
    count: int,
    key: Callable[[int, int], str],
    encode: Callable[[Iterator[ExportImage]], Iterable[bytes]],
    with_data: bool = True,
) -> Iterator[ExportFile]:
    """The files of a format that has one file per `count` images. `key` takes the number of a file and of all files."""
    starts = range(0, max(1, len(selection)), count)  # one file if there are no images
    for number, start in enumerate(starts):
        stop = min(start + count, len(selection))
        images = partial(selection.images, start, stop)
        yield ExportFile(key(number, len(starts)), stop - start, images, encode, with_data)


@dataclass(frozen=True)
class Format:
    """A format that masks are exported to."""

    name: str
    files: Callable[[Selection], Iterator[ExportFile]]  # in the order of their images
    options: dict[str, Any] = field(default_factory=dict[str, Any])  # that decide the content of the files
    unique_stems: bool = False  # whether files are named after images without their extension
    images_by_stem: bool = False  # whether readers find the image of such a file by its name
    images_inside: bool = False  # whether image files are part of the files of the format
    image_folder: str = ""  # for image files that are not inside: empty, or with a slash at its end
    # What the files written so far cannot express -> how often.
    lost: Counter[str] = field(default_factory=Counter[str])


def write_export(
    selection: Selection,
    form: Format,
    storage: Storage,
    settings: dict[str, Any],
    images: ImagesMode = "none",
    on_progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Writes the missing files of an export to `storage`. Calls `on_progress` with numbers of images done.

    `settings` are the condition and the limit of the selection. An image counts once for its copy or link, and once for
    each file that it is part of: see `count_steps`.

    Raises RunMismatchError if `storage` holds another export or other objects, ConfigError if images cannot be linked,
    SourceError if an image file is gone, ObjectError if a part is damaged, and StorageError if a store cannot be
    reached.
    """
    _check_images(form, storage, images)
    _begin(selection, form, storage, settings | {"images": images})
    there = {item.key for item in storage.list()}
    if images != "none" and not form.images_inside:
        _place_images(selection, form, storage, images, there, on_progress)

    done = 0
    kinds: set[bool] = set()  # `with_data` of the missing files
    for file in form.files(selection):
        if file.key in there:
            done += file.count
        else:
            kinds.add(file.with_data)
    on_progress(done)
    for with_data in sorted(kinds):

        def missing(with_data: bool = with_data) -> Iterator[ExportFile]:
            return (file for file in form.files(selection) if file.with_data == with_data and file.key not in there)

        stream = _stream(selection, missing, images == "copy" and form.images_inside and with_data)
        with _Writer(storage) as writer:
            for file in missing():
                chunks = file.encode(_counted(islice(stream, file.count), on_progress))
                if file.count > 1:
                    storage.put_chunks(file.key, chunks)
                else:
                    writer.put(file.key, b"".join(chunks))


def count_steps(selection: Selection, form: Format, images: ImagesMode) -> int:
    """What the numbers for `on_progress` of `write_export` add up to."""
    copied = len(selection) if images != "none" and not form.images_inside else 0
    return copied + sum(file.count for file in form.files(selection))


def _check_images(form: Format, storage: Storage, images: ImagesMode) -> None:
    if images != "link":
        return
    if form.images_inside:
        raise ConfigError(f"--images link: {form.name} has the images inside of its files; give copy or none")
    if not isinstance(storage, LocalStorage):
        raise ConfigError(f"--images link: {storage.uri} has no links; give copy or none")


def _begin(selection: Selection, form: Format, storage: Storage, settings: dict[str, Any]) -> None:
    """Creates `_export`, or compares it. Raises RunMismatchError if the destination holds anything else."""
    output = selection.run.storage.uri
    if is_inside(storage.uri, output) or is_inside(output, storage.uri):
        raise RunMismatchError(f"{storage.uri}: overlaps with the run {output}: choose another destination")
    run = json.dumps(selection.run.settings, sort_keys=True).encode()
    wanted = {
        "format": form.name,
        **form.options,
        **settings,
        "run": hashlib.sha256(run).hexdigest(),
        "parts": selection.sha256,
        "maskmill": version("maskmill"),
    }
    text = json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    storage.sweep()
    if not storage.exists(EXPORT_KEY):
        if (other := next(storage.list(), None)) is not None:
            raise RunMismatchError(
                f"{storage.uri}: holds other objects, such as {other.key}, but no export: choose an empty destination"
            )
        storage.put(EXPORT_KEY, text.encode())
        return
    try:
        found = json.loads(storage.read(EXPORT_KEY))
        names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    except (ValueError, AttributeError) as error:
        raise RunMismatchError(f"{storage.uri}/{EXPORT_KEY}: damaged: choose an empty destination") from error
    if not names:
        return
    if names == ["parts"]:
        raise RunMismatchError(
            f"{storage.uri}: the run has new results since this export: delete the export or choose another destination"
        )
    different = "; ".join(f"{name} is {found.get(name)} there and {wanted.get(name)} now" for name in names)
    raise RunMismatchError(f"{storage.uri}: holds another export: {different}: choose another destination")


def _place_images(
    selection: Selection,
    form: Format,
    storage: Storage,
    images: ImagesMode,
    there: set[str],
    on_progress: Callable[[int], None],
) -> None:
    def key(image: SelectedImage) -> str:
        return form.image_folder + (image.stem_name if form.images_by_stem else image.name)

    def missing() -> Iterator[SelectedImage]:
        return (image for image in selection.images() if key(image) not in there)

    on_progress(sum(key(image) in there for image in selection.images()))
    if images == "link":
        assert isinstance(storage, LocalStorage)
        for image, target in link_targets(selection.run, missing()):
            storage.link(key(image), target)
            on_progress(1)
        return
    with _Writer(storage) as writer:
        for image, data in read_image_files(selection.run, missing()):
            writer.put(key(image), data)
            on_progress(1)


def _stream(selection: Selection, files: Callable[[], Iterator[ExportFile]], with_data: bool) -> Iterator[ExportImage]:
    def images() -> Iterator[SelectedImage]:
        return chain.from_iterable(file.images() for file in files())

    if not with_data:
        return (ExportImage(image, masks, None) for image, masks in read_masks(selection.run, images()))
    both = zip(read_masks(selection.run, images()), read_image_files(selection.run, images()), strict=True)
    return (ExportImage(image, masks, data) for (image, masks), (_, data) in both)


def _counted(images: Iterator[ExportImage], on_progress: Callable[[int], None]) -> Iterator[ExportImage]:
    for image in images:
        yield image
        on_progress(1)


class _Writer:
    """Writes small objects with several threads, because most of the time is spent waiting for the store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        self._window: deque[Future[None]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def put(self, key: str, data: bytes) -> None:
        """Raises the error of an earlier object, if there was one."""
        if len(self._window) == REQUESTS_AT_ONCE:
            self._window.popleft().result()
        self._window.append(self._threads.submit(self._storage.put, key, data))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._window:
                future.result()
