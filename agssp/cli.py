"""The command line of the method. It imports nothing heavy before a command needs it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from datasets_builders.errors import UserError

app = typer.Typer(
    name="agssp",
    help="The AGSSP method: anomaly maps, pseudo boxes from them, and pretraining guided by both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Engine(StrEnum):
    """What shares the work."""

    LOCAL = "local"
    RAY = "ray"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def maps(
    dataset: Annotated[str, typer.Argument(help="Dataset or corpus; see python -m datasets_builders list.")],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Option(
            "--maps",
            help="kead:tiny, kead:base, kead:large, kead:huge, kead:MODEL/TAG, winclip:ENCODER, memory:lite0, oracle, "
            "random or folder:DIR; kead:tiny by default.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Short for --maps kead:ENCODER.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Of a dataset: train or validation.")] = "train",
    shots: Annotated[int, typer.Option(min=0, help="Normal samples of each category; 0: none.")] = 4,
    normals: Annotated[
        str,
        typer.Option(
            help="Which samples: auto, labelled (images without objects), or a file of image ids.",
            metavar="RULE",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples, and of random maps.")] = 0,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Local file with the encoder's weights.", show_default=False)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the encoder: auto, fp32, bf16 or fp16.", show_default=False)
    ] = None,
    descriptions: Annotated[
        Path | None,
        typer.Option(help="Your own descriptions of objects and defects (YAML).", show_default=False),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    num_shards: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    shard: Annotated[int, typer.Option(min=0, help="Which of them this is, from 0.")] = 0,
    engine: Annotated[
        Engine, typer.Option(help="ray: on all machines of a Ray cluster, which see --out and the cache.")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster, or auto; a new one on this machine by default.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the anomaly maps of a dataset: a Parquet dataset with one map an image.

    An interrupted run goes on where it was when the same command is given again. Several processes may share the work
    (--num-shards, --shard, same --out): the last one to finish joins the parts.
    """
    from agssp.mapping_command import make

    if source is not None and encoder is not None:
        raise UserError("--encoder E is short for --maps kead:E: give one of them.")
    if address is not None and engine is not Engine.RAY:
        raise UserError("--address has no meaning without --engine ray.")
    outcome = make(
        dataset=dataset,
        spec=source or f"kead:{encoder or 'tiny'}",
        out=out,
        split=split,
        shots=shots,
        normals=normals,
        seed=seed,
        encoder_weights=encoder_weights,
        precision=precision,
        descriptions=descriptions,
        device=device.value,
        num_shards=num_shards,
        shard=shard,
        on_ray=engine is Engine.RAY,
        address=address,
    )
    if as_json:
        _print_json(outcome)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@app.command()
def boxes(
    maps: Annotated[Path, typer.Argument(help="Folder that `maps` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    margin: Annotated[
        float, typer.Option(help="c: a category's threshold is the mean of its maps' maxima, less c.")
    ] = 0.1,
    image_gate: Annotated[
        float | None,
        typer.Option(help="Images whose image score is under it get no boxes.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="Largest number of boxes of an image.")] = 10,
    nms: Annotated[
        float, typer.Option(help="Intersection over union with a better box above which a box goes.")
    ] = 0.8,
    outline: Annotated[
        str, typer.Option(help="components: as in the paper; contours: with all that they enclose.")
    ] = "components",
    coco: Annotated[
        Path | None, typer.Option(help="Folder to make, with the images and COCO JSON.", show_default=False)
    ] = None,
    yolo: Annotated[
        Path | None,
        typer.Option(help="Folder to make, with the images in YOLO's layout.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one a core by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pseudo boxes from anomaly maps: the regions above each category's own threshold."""
    from agssp import box_command
    from agssp.box_settings import BoxSettings

    exports = {style: folder for style, folder in (("coco", coco), ("yolo", yolo)) if folder is not None}
    settings = BoxSettings(margin, image_gate, top, nms, outline)
    facts = box_command.run(maps, out, settings, workers, exports)
    if as_json:
        _print_json(facts)
    else:
        box_command.print_facts(facts)


@app.command()
def visualize(
    maps: Annotated[list[Path], typer.Argument(help="Folders that `maps` wrote, one a source.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.", show_default=False)],
    boxes: Annotated[
        Path | None,
        typer.Option(help="Folder that `boxes` wrote from the first of the maps.", show_default=False),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Dataset or corpus of the images; that of the maps by default.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Its split; that of the maps by default.", show_default=False)
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Image to draw; may be repeated.", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option(min=1, max=200, help="Without --id: number of images.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Without --id: chooses the images.")] = 0,
) -> None:
    """Draw images with their maps side by side, and with boxes also their masks and boxes."""
    from agssp.visualize import draw

    drawn = draw(maps, boxes, images, split, ids or [], number, seed, out)
    typer.echo(f"wrote {out}: {len(drawn)} images")


@app.command("train-clip")
def train_clip(
    out: Annotated[Path, typer.Option(help="Folder to make: an encoder for --encoder.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of images, captions, first weights and draws.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of the image tower; the recipe's by default.", show_default=False),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="To render; the recipe's by default.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render images.")] = 1,
    as_json: Json = False,
) -> None:
    """Train the tiny encoder from nothing on generated images and captions.

    An interrupted training goes on where it was when the same command is given again.
    """
    from agssp.tiny_clip.command import make

    made = make(out, seed, steps, images, workers)
    if as_json:
        _print_json(made)
    else:
        typer.echo(f"wrote {made['weights']}: {made['parameters']:,} parameters")


Backbone = Annotated[
    str,
    typer.Option(
        help="csp_darknet, resnet, swin or lite0; with a size: swin:tiny. The smallest by default.",
        show_default=False,
    ),
]
Method = Annotated[str, typer.Option(help="How the backbone is pretrained: cls, mocov3 or simmim.")]
Recipes = Annotated[str, typer.Option(help="Set of recipes: mini-v1, paper-v1 or mock-v1.")]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="Images; the recipes' by default. A folder of your own becomes a corpus by: "
        "python -m datasets_builders prepare corpus_own_NAME --raw DIR (see docs/tutorial.md).",
        show_default=False,
    ),
]
Maps = Annotated[
    str | None, typer.Option(help="Source of anomaly maps; the recipes' by default.", show_default=False)
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Weights that the backbone begins with; none: random values. The recipes' by default.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the pretraining.")]
Out = Annotated[Path, typer.Option(help="Folder to make, with the weights.", show_default=False)]


@app.command("pretrain-backbone")
def pretrain_backbone(
    backbone: Backbone,
    out: Out,
    mode: Annotated[str, typer.Option(help="industrial: on the images; agbp: guided by maps, too.")] = "agbp",
    method: Method = "cls",
    recipes: Recipes = "mini-v1",
    corpus: Corpus = None,
    maps: Maps = None,
    init: Init = None,
    seed: Seed = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    as_json: Json = False,
) -> None:
    """Pretrain a backbone, and leave files that torchvision, timm, OpenMMLab or Ultralytics load.

    Stages that are there already are not made again; an interrupted one goes on when the same command is given again.
    """
    if mode not in ("industrial", "agbp"):
        raise UserError(f"--mode is industrial or agbp, not {mode}. Whole detectors: pretrain-detector.")
    outcome = _pretrain(
        mode=mode,
        backbone=backbone,
        method=method,
        detector="yolov8",
        recipe_set=recipes,
        corpus=corpus,
        maps=maps,
        init=init,
        seed=seed,
        device=device.value,
        out=out,
    )
    if as_json:
        _print_json(outcome)


@app.command("pretrain-detector")
def pretrain_detector(
    backbone: Backbone,
    out: Out,
    detector: Annotated[str, typer.Option(help="yolov8, faster_rcnn or dino.")] = "yolov8",
    method: Method = "cls",
    recipes: Recipes = "mini-v1",
    corpus: Corpus = None,
    maps: Maps = None,
    init: Init = None,
    seed: Seed = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    as_json: Json = False,
) -> None:
    """Pretrain a whole detector (mode agssp): its backbone guided by maps, neck and head on pseudo boxes.

    Stages that are there already are not made again; an interrupted one goes on when the same command is given again.
    """
    outcome = _pretrain(
        mode="agssp",
        backbone=backbone,
        method=method,
        detector=detector,
        recipe_set=recipes,
        corpus=corpus,
        maps=maps,
        init=init,
        seed=seed,
        device=device.value,
        out=out,
    )
    if as_json:
        _print_json(outcome)


def _pretrain(**request: Any) -> dict[str, Any]:
    from agssp.pretrain_command import pretrain

    try:
        return pretrain(**request)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last stored state.", file=sys.stderr)
        raise typer.Exit(130) from None


def run_app(arguments: list[str]) -> int:
    """Runs a command line.

    Args:
        arguments: Its words, without the program's name.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted.
    """
    try:
        app(arguments, prog_name="python -m agssp")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0
