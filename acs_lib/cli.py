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


if __name__ == "__main__":
    app()
