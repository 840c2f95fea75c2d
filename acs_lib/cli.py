"""The command line: `acs --help`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from acs_lib import paths

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Choose the best of several LVLM boxes by the LVLM's own attention."""


@app.command()
def train_embedded(
    folder: Annotated[Path, typer.Option(help="where the LVLM is written")] = paths.EMBEDDED / "internvl",
    work: Annotated[Path, typer.Option(help="where checkpoints are kept")] = paths.DATA / "train" / "internvl",
    anew: Annotated[bool, typer.Option("--anew", help="throw away the checkpoints of an earlier training")] = False,
) -> None:
    """Train the embedded LVLM on rendered scenes (over an hour on 2 cores); goes on from its last checkpoint."""
    from acs_lib.lvlms import embedded  # late: it brings torch

    if anew:
        shutil.rmtree(work, ignore_errors=True)
    try:
        digest = embedded.train(folder, work)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{folder}: weights {digest}")


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="coco or objects365")],
    profile: Annotated[str, typer.Option(help="the profile whose queries decide which images are fetched")] = "paper",
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many queries of each size and split")] = None,
    annotations: Annotated[Path | None, typer.Option(help="an annotation file that you have already")] = None,
    images: Annotated[Path | None, typer.Option(help="the folder of its images")] = None,
    base: Annotated[str | None, typer.Option(help="a mirror's address, with the files under the same names")] = None,
) -> None:
    """Fetch the annotations of COCO or Objects365 and the images that the profile's queries need.

    The same command goes on where it stopped. With --annotations and --images nothing is fetched: what is on disk is
    linked to where the profile looks for it, and checked. Exit code 1 if images are missing.
    """
    from acs_lib.datasets import download  # late: it brings torch
    from acs_lib.profiles import load_profile

    if (annotations is None) != (images is None):
        raise typer.BadParameter("--annotations and --images belong together")
    try:
        chosen = load_profile(f"{profile}-first-{limit}" if limit else profile)
        if annotations is None:
            typer.echo(f"by fetching you agree to: {download.source(name).licence}")
            found = download.get(chosen, name, base)
        else:
            found = download.link(chosen, name, annotations, images)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(download.say(*found))
    if found[1].missing:
        typer.echo("a run goes on without what is missing; the same command tries again", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
