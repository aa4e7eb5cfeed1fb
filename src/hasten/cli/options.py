"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path

import click

model_argument = click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
artifact_argument = click.argument("artifact", metavar="OUT.hasten", type=click.Path(path_type=Path))

input_option = click.option(
    "--input",
    "-i",
    "input_file",
    metavar="X.npz",
    type=click.Path(path_type=Path),
    help="Arrays by input name (numpy.savez). Without it, plausible inputs are made up.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    metavar="NAME=SIZES",
    multiple=True,
    help="Shape of a made-up input, such as input_ids=1x128; may be repeated.",
)
threads_option = click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads of a run; all cores that this process may use if not given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
database_option = click.option(
    "--database",
    metavar="F",
    type=click.Path(path_type=Path),
    help="File of the results of tuning. [default: $HASTEN_TUNING, or one in the user's data folder]",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace files that are written if they are there."
)
