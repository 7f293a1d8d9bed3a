"""`maskmill view`: shows one run, or two side by side, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskmill.jobs.extras import require_extra
from maskmill.jobs.run import MovedTo, RunOutput


def view(
    out: RunOutput,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[B]", help="Another run on the same images, shown beside it.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Default: 8642, or a free port if it is taken.", show_default=False),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the page as static files to this new folder instead.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of images in the folder of --site.")] = 1000,
    moved_to: MovedTo = None,
) -> None:
    """Browse a run in the browser: images, masks, scores, failures.

    The page is served to this machine only. Ctrl-C ends it. To see it from another machine, forward its port:
    ssh -L 8642:localhost:8642 MACHINE.

    Examples:

      maskmill view out/

      maskmill view out-exact/ out-fast/

      maskmill view s3://bucket/out --site pages/
    """
    require_extra("view")
    # Imported here because pyarrow takes long to import and `--help` does not need it.
    from maskmill.jobs.console import plain_console
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.storage import open_storage
    from maskmill.tables.view.content import Content

    outs = [out] if other is None else [out, other]
    contents = [Content(open_finished_run(open_storage(address), moved_to)) for address in outs]
    console = plain_console()
    if site:
        from maskmill.tables.view.site import write_site

        with ProgressBar("writing", "images", min(limit, contents[0].run.plan.n_images or limit)) as bar:
            images = sum(1 for _ in bar.track(write_site(contents, site, limit)))
        console.print(f"images    {images}")
        console.print(f"site      {site}")
        return
    from maskmill.tables.view.server import listen, server

    listening = listen(port)
    console.print(f"view      http://localhost:{listening.getsockname()[1]}")
    console.print("stop      Ctrl-C")
    server(contents).run(sockets=[listening])
    # The server ends by Ctrl-C only. asyncio does not always pass it on.
    raise KeyboardInterrupt
