"""`maskmill models`: lists the models with their sizes, terms and checkpoint files."""

from __future__ import annotations


def models() -> None:
    """List the models, with the terms of their published weights and the checkpoint files that load.

    `--model` of the other commands takes a name of the first column. Every checkpoint loads in the layout of its
    authors, in the layout of Hugging Face where there is one, and as `maskmill train` saves it.

    Examples:

      maskmill models
    """
    # Imported here because torch takes seconds to import and `--help` does not need it.
    import torch
    from rich.table import Table

    from maskmill.jobs.console import plain_console
    from maskmill.model.families import FAMILIES
    from maskmill.model.network import Network

    console = plain_console()
    for family in sorted(FAMILIES.values(), key=lambda family: family.title.lower()):
        table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
        table.title = family.title
        for name in ("model", "input", "parameters", "preset", "checkpoint"):
            table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
        for config in family.variants:
            with torch.device("meta"):
                network = Network(config)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            table.add_row(
                config.name,
                f"{config.image_size} x {config.image_size}",
                f"{parameters / 1e6:.1f} M",
                config.default_preset,
                family.checkpoints.get(config.name, "none published"),
            )
        console.print(table)
        console.print(f"weights: {family.terms}; {family.source}\n")
