"""The command line: `acs --help`.

Results go to standard output, progress and complaints to standard error. Exit codes: 0 done; 1 something went wrong,
an image or a line could not be read or, for `acs ground` and `acs score`, an object was not found; 2 wrong usage; 130
interrupted.
"""

import csv
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from acs_lib import __version__, paths, profiles
from acs_lib.core.errors import UserError, lacks_memory
from acs_lib.core.files import write_text
from acs_lib.core.progress import tracked
from acs_lib.grounding.kept import lacks_box

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
OTHER_PICTURES = set(  # that Pillow reads only with a plug-in, if at all
    ".heic .heif .hif .jxl .svg .exr .hdr .xcf .raw .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef .srw".split()
)
GOES_ON = "stopped; the same command goes on from there"
ADVICE = f"look: {sys.executable} -m acs_lib doctor"
COLUMNS = ["image", "object", "x1", "y1", "x2", "y2", "score", "predicted_iou"]
DETECTED = [*COLUMNS[:-1], "votes"]


def complain(message: str) -> None:
    """Writes `message` to standard error; ends nothing."""
    typer.echo(message, err=True)


@contextmanager
def report_user_errors(stopped: str = "stopped", advice: str = "") -> Iterator[None]:
    """What a user can mend is one line on standard error and an exit code, not a traceback; a warning is one, too.

    stopped: what is said after Ctrl-C; advice: what is said after an error
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of packages: no news for a user
            told = set()

            def tell(message, *where) -> None:
                if str(message) not in told:  # of many images alike
                    told.add(str(message))
                    complain(f"warning: {message}")

            warnings.showwarning = tell
            yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        complain(f"\n{stopped}")
        raise typer.Exit(130) from None
    except ImportError as error:
        mend = "" if "acs-kit[" in str(error) else ': pip install "acs-kit[run]"'
        complain(f"error: {error}{mend}")
        if advice:
            complain(advice)
        raise typer.Exit(1) from None
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, UserError):
            message = str(error)
        elif lacks_memory(error):
            told = re.split("[.;]", str(error))[0]
            message = f"out of memory ({told}); ask for fewer --samples, fewer objects at once, or a smaller LVLM"
        elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full{f' at {error.filename}' if error.filename else ''}; free some space"
        elif getattr(error, "filename", None):
            message = f"{error.strerror}: {error.filename}"
        elif isinstance(error, ValueError | OSError):
            message = str(error)
        else:
            raise
        complain(f"error: {message}")
        if advice:
            complain(advice)
        raise typer.Exit(error.code if isinstance(error, UserError) else 1) from None


def _completed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """How a shell completes one of some names, which are looked up when it asks."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _methods() -> tuple[str, ...]:
    from acs_lib.method.baselines import METHODS  # late: it takes seconds

    return METHODS


def _box_selectors() -> tuple[str, ...]:
    from acs_lib.grounding.detect import BOX_SELECTORS  # late: it takes seconds

    return BOX_SELECTORS


def _units() -> Iterable[str]:
    from acs_lib.datasets.phrases import UNITS  # late: it brings pycocotools

    return UNITS


def _datasets() -> Iterable[str]:
    from acs_lib.datasets.download import SOURCES  # late: it brings requests

    return SOURCES


def _families() -> Iterable[str]:
    from acs_lib.embedded.training import TINY  # late: it brings torch

    return TINY


def _runs() -> Iterable[str]:
    from acs_lib.clean import left  # late: it brings pyarrow

    return [run.name for run in left()]


def _check_selector(name: str, known: tuple[str, ...]) -> None:
    from acs_lib.method.baselines import slug  # late: it takes seconds

    if slug(name) not in known:
        raise typer.BadParameter(f"there is no selector {name!r}; choose one of {', '.join(known)}")


ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE", help="Image files or folders of images and, unless --object says it, last what to look for."
    ),
]
LVLMOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A profile's LVLM, a folder, or a hub name (owner/model).",
        autocompletion=_completed(profiles.known_lvlms),
    ),
]
SelectorOption = Annotated[
    str, typer.Option(metavar="NAME", help="How the box is chosen.", autocompletion=_completed(_methods))
]
HeadSetOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Discriminative heads (JSON), instead of the LVLM's.")
]
RegressorOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Regressor (safetensors), instead of the LVLM's.")
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Both of these, from a folder of acs calibrate or a hub name (owner/name)."),
]


def _out(path: Path | None) -> Path | None:
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it, such as {path / 'boxes.jsonl'}")
    if path is not None and not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent} to write {path.name} to")
    return path


OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_out,
        help="Append the lines of --json to this file, instead of printing them; what it holds is not asked for again.",
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, with all candidates.")]
_profiles = _completed(profiles.available)
ProfileOption = Annotated[
    str, typer.Option(metavar="NAME", help="A file in acs_lib/profiles.", autocompletion=_profiles)
]


def _question(asked: str | None) -> str | None:
    if asked is not None and asked != "makers" and "{object}" not in asked:
        raise typer.BadParameter("it has to have {object} where the object's name goes, or to be: makers")
    return asked


QuestionOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        callback=_question,
        autocompletion=_completed(lambda: ["makers"]),
        help="How to ask, with {object} in it; 'makers': as the LVLM's makers do.",
        show_default="the profile's, or the paper's",
    ),
]
SamplesOption = Annotated[int, typer.Option(min=1, metavar="N", help="How many answers are sampled.")]
TemperatureOption = Annotated[
    float | None, typer.Option(metavar="T", help="Of sampling; above 0.", show_default="that of the LVLM's D_c, or 0.5")
]
TopPOption = Annotated[
    float | None, typer.Option(metavar="P", help="Of sampling; up to 1.", show_default="that of the LVLM's D_c, or 1")
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same boxes.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Choose the best of several LVLM boxes by the LVLM's own attention."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are no news; that they failed is told


def _suffixes() -> set[str]:
    """How the names of image files end that can be read."""
    from PIL import Image  # late: it takes a moment

    return set(Image.registered_extensions()) - {".pdf", ".palm"}  # which are only written


def _first(names: list[str]) -> str:
    """Three of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _images(names: list[str]) -> tuple[list[Path], int]:
    """The image files that are meant, where a folder stands for the images in it, by name; and how many pictures in the
    folders are of a kind that cannot be read. These, and what else is in the folders, are named and counted on standard
    error; hidden files are not."""
    known, found, refused = _suffixes(), [], 0
    for name in names:
        path = Path(name).expanduser()
        if not path.is_dir():
            found.append(path)
            continue
        files = sorted(file for file in path.iterdir() if file.name[0] != ".")
        kinds = [None if file.is_dir() else file.suffix.lower() for file in files]
        inside = [file for file, kind in zip(files, kinds) if kind in known]
        others = [file.name for file, kind in zip(files, kinds) if kind in OTHER_PICTURES - known]
        left = [
            file.name + "/" * (kind is None) for file, kind in zip(files, kinds) if kind not in known | OTHER_PICTURES
        ]
        told = (
            f"pictures in {path} of a kind that cannot be read: {len(others)} ({_first(others)}); "
            "save them as PNG, JPEG or WebP"
        )
        if not inside:
            raise typer.BadParameter(f"there is no image in the folder {path}" + (f"; {told}" if others else ""))
        if others:
            complain(f"warning: {told}")
        if left:
            complain(f"note: left out in {path}, being no pictures by their names: {len(left)} ({_first(left)})")
        found += inside
        refused += len(others)
    return found, refused


def _asked(names: list[str], objects: list[str] | None, command: str) -> tuple[list[str], list[str]]:
    """The images and the objects that are meant: without `objects` the last name is one."""
    if not objects:
        *names, last = names
        if not names or Path(last).is_file() or Path(last).suffix.lower() in {*_suffixes(), *OTHER_PICTURES}:
            raise typer.BadParameter(
                f'name the object to look for: acs {command} IMAGE... OBJECT, such as "sports ball"'
            )
        objects = [last]
    if not all(wanted.strip() for wanted in objects):
        raise typer.BadParameter('the object is empty; name what to look for, such as "sports ball"')
    return names, objects


def _chosen_by(head_set: Path | None, regressor: Path | None, calibration: str | None) -> dict[str, Path | None]:
    """The head set and the regressor that are meant, as arguments of `ground`."""
    if calibration is None:
        return {"head_set": head_set, "regressor": regressor}
    if head_set is not None or regressor is not None:
        raise typer.BadParameter("--calibration holds head set and regressor; leave --head-set and --regressor away")
    from acs_lib.grounding.calibration import calibration as files_of  # late: it takes a moment

    return files_of(calibration)


def _check_sampling(temperature: float | None, top_p: float | None) -> None:
    if temperature is not None and not 0 < temperature < float("inf"):
        raise typer.BadParameter(f"the temperature has to be a number above 0, not {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise typer.BadParameter(f"top-p has to be above 0 and up to 1, not {top_p}")


def _pictures(save: Path | None, questions: list[tuple[Path, str]]) -> list[Path | None]:
    """Where the picture of each question goes: `save` itself, or a file of its own in the folder `save`."""
    if save is None:
        return [None] * len(questions)
    from acs_lib.grounding.picture import FORMATS
    from acs_lib.method.baselines import slug

    if save.suffix and not save.is_dir():
        if save.suffix.lower() not in FORMATS:
            raise typer.BadParameter(f"--save {save}: name it {', '.join(FORMATS)}")
        if len(questions) > 1:
            raise typer.BadParameter(f"--save {save} is one file for {len(questions)} pictures; give a folder")
        if not save.resolve().parent.is_dir():
            raise typer.BadParameter(f"--save {save}: there is no folder {save.parent}")
        if save.resolve() == questions[0][0].resolve():
            raise typer.BadParameter(f"--save {save} would overwrite the image")
        return [save]
    save.mkdir(parents=True, exist_ok=True)
    names = [f"{image.stem}-{slug(wanted)}" for image, wanted in questions]
    counted = [
        f"{name}-{names[:index].count(name) + 1}" if name in names[:index] else name for index, name in enumerate(names)
    ]
    return [save / f"{name}.png" for name in counted]


@app.command(short_help="What is here, what a profile needs, what to do next.")
def doctor() -> None:
    """Say what this machine has (Python, packages, GPU, cores, memory, disk, model hub), what each profile takes, and
    which command comes next.

    Exit code 1 if something lacks that a run needs.
    """
    with report_user_errors():
        from acs_lib.doctor import examine

        lines, sound = examine()
        for line in lines:
            typer.echo(line)
    raise typer.Exit(int(not sound))


@app.command(
    short_help="Find an object in an image.",
    epilog="The default LVLM knows the 50 icons of its rendered scenes only: try it on those in "
    f"{paths.EMBEDDED / 'samples' / 'images'}",
)
def ground(
    arguments: ImagesArgument,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="OBJECT",
            help="What to look for; can be given several times, and all are asked about at once.",
        ),
    ] = None,
    lvlm: LVLMOption = "internvl-embedded",
    question: QuestionOption = None,
    selector: SelectorOption = "acs-free",
    samples: SamplesOption = 10,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Where an answer is cut; reasoning LVLMs need more.",
            show_default="that of D_c's answers, or 64",
        ),
    ] = None,
    head_set: HeadSetOption = None,
    regressor: RegressorOption = None,
    calibration: CalibrationOption = None,
    zoom: Annotated[
        float | None,
        typer.Option(metavar="TIMES", help="Look again, so many times closer, around the chosen box; off by default."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of all questions at most this share may be answered wrongly; others: not found. Needs risk.json.",
        ),
    ] = None,
    effort: Annotated[
        Literal["all", "auto"],
        typer.Option(help="Draw all samples, or stop when an answer's score is enough. Needs effort.json."),
    ] = "all",
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Draw box, candidates and attention: a file (png, jpg, webp, pdf), or a folder for several.",
        ),
    ] = None,
    out: OutOption = None,
    as_json: JSONOption = False,
) -> None:
    """Find an object in an image: sample several boxes and choose one of them by attention.

    Prints one line for each image and object, tab-separated under a header: box in pixels of the image (empty if
    there is none), score, predicted IoU.

    \b
    acs ground street.jpg "traffic light"
    acs ground street.jpg park/ -o dog -o "sports ball" --json > boxes.jsonl
    acs ground holidays/ dog --out boxes.jsonl    # the same command goes on where it was stopped
    acs ground street.jpg dog --lvlm Qwen2.5-VL-7B --selector acs-learned --save found.png
    """
    with report_user_errors(GOES_ON if out else "stopped"):
        names, objects = _asked(list(arguments), objects, "ground")
        _check_selector(selector, _methods())
        _check_sampling(temperature, top_p)
        if zoom is not None and not zoom > 1:
            raise typer.BadParameter(f"--zoom has to be above 1, not {zoom}")
        if risk is not None and not 0 < risk < 1:
            raise typer.BadParameter(f"--risk has to be above 0 and below 1, not {risk}")
        images, refused = _images(names)
        targets = _pictures(save, [(image, wanted) for image in images for wanted in objects])
        settings = {
            "selector": selector, "samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed,
            "max_new_tokens": max_new_tokens, "zoom": zoom, "risk": risk, "effort": effort,
            **_chosen_by(head_set, regressor, calibration),
        }  # fmt: skip
        from acs_lib.grounding import api  # late: it takes seconds

        loaded = _loaded(lvlm, question)

        def ask(picture, names: list[str]) -> list:
            return api.ground(loaded, picture, names, **settings)

        if out is None and not as_json:
            _print_row(COLUMNS)
        failed = _answer(
            loaded, images, refused, objects, targets, ask, as_json, out, {"command": "ground", **settings}
        )
    raise typer.Exit(int(failed))


def _note(spec) -> None:
    """Say on standard error what may take long with this LVLM."""
    from acs_lib.lvlms.load import patience  # late: it takes seconds

    for sentence in patience(spec):
        complain(f"note: {sentence}")


def _loaded(name: str, question: str | None = None):
    """The LVLM of that name, asked with that question, after what may take long was said."""
    from acs_lib.lvlms.load import asked_with, load_spec, lvlm_spec  # late: it takes seconds

    spec = lvlm_spec(name)
    _note(spec)
    return load_spec(asked_with(spec, question))


def _answer(
    lvlm, images: list[Path], refused: int, objects: list[str], targets: list[Path | None], ask: Callable,
    as_json: bool, out: Path | None, settings: dict, answers: dict[tuple[Path, str], dict] | None = None,
) -> bool:  # fmt: skip
    """Ask for all objects in each image and print the answers; True if an image could not be read or answered, or an
    object has no word or was not found.

    refused: how many images count with those that cannot be read; targets: where the pictures go, the objects of an
    image together; ask: (image, names) -> their answers; out: the file that keeps the answers, which are not printed
    then, with the `settings` of `ask`; answers: gets all answers, by image and object
    """
    from acs_lib.core.images import read_image  # late: they take seconds
    from acs_lib.grounding import api
    from acs_lib.grounding.kept import keep, read_kept
    from acs_lib.lvlms.adapter import ImageRefused
    from acs_lib.lvlms.load import loaded_digest

    known, kept = {}, {}
    for place, wanted in enumerate(objects):
        try:
            known[place] = api.object_name(lvlm, wanted)
        except ValueError as error:
            complain(f"error: {error}")
    if not known:
        return True
    names = list(known.values())
    if out is not None:
        asked = {"lvlm": lvlm.name, "weights": loaded_digest(lvlm), "question": lvlm.question, "object": objects}
        asked |= settings | api.calibrated_with(lvlm, settings["head_set"], settings["regressor"])
        kept = read_kept(out, asked)
    before = {path: [kept.get((str(path), name)) for name in names] for path in images}
    answers = {} if answers is None else answers
    answers |= {(path, answer["category"]): answer for path in images for answer in before[path] if answer}
    waiting = [(number, path) for number, path in enumerate(images) if None in before[path]]
    if done := len(images) - len(waiting):
        drawn = ", and are not drawn again" if any(targets) else ""
        complain(f"{done} of {len(images)} pictures were answered before, in {out}{drawn}")
    failed = any(map(lacks_box, answers.values()))
    unanswered = refused
    for number, path in tracked(waiting, lvlm.name, done, "pictures", printed=out is None):
        try:
            picture = read_image(path)
        except (ValueError, OSError) as error:
            complain(f"error: {error}")
            unanswered += 1
            continue
        try:
            results = ask(picture, names)
        except ImageRefused as error:
            complain(f"error: {path}: {error}")
            unanswered += 1
            continue
        for result in results:
            failed |= _tell(path, result, as_json, out is None)
        for place, result in zip(known, results):
            if (target := targets[number * len(objects) + place]) is not None:
                result.save(target)  # after it was printed: an answer is not lost to a full disk
        if out is not None:  # after its picture was drawn: what is kept is not asked for again
            keep(out, path, [each.to_dict() for each, old in zip(results, before[path]) if old is None], asked)
        answers |= {(path, each.category): each.to_dict() for each in results}
    if unanswered and len(images) + refused > 1:
        complain(f"{unanswered} of {len(images) + refused} pictures could not be read or answered; see above why")
    return failed or unanswered > 0 or len(known) < len(objects)


def _in_coco(answers: dict[tuple[Path, str], dict], images: dict[Path, int], objects: dict[str, int]) -> list[dict]:
    """The boxes of answers in COCO's results format, by the ids of images and objects."""
    from acs_lib.core.boxes import as_coco  # late: they take seconds
    from acs_lib.datasets.coco import asked_for

    found = []
    for (path, name), answer in answers.items():
        rows = [row for row in _rows(answer) if row[0] is not None]
        found += as_coco([row[:4] for row in rows], [row[4] for row in rows], images[path], objects[asked_for(name)])
    return found


def _tell(path: Path, result, as_json: bool, printed: bool = True) -> bool:
    """Print one answer, if it is to be printed; True if the object was not found, which is a warning."""
    answer = result.to_dict()
    if missing := lacks_box(answer):
        complain(f"warning: {path}: {result.summary}")
    if printed and as_json:
        typer.echo(json.dumps({"image": str(path), **answer}))
    elif printed:
        for numbers in _rows(answer):
            formats = [".1f"] * 4 + [".6g"] * 2
            cells = ["" if value is None else format(value, how) for value, how in zip(numbers, formats)]
            _print_row([path, answer["category"], *cells])
    return missing


def _rows(answer: dict) -> list[list[float | None]]:
    """x1, y1, x2, y2, score and predicted IoU of an answer; votes instead of the last one, and one row an instance,
    where it has instances. One row of None where there is no box."""
    if "instances" in answer:
        found = [[row[name] for name in DETECTED[2:]] for row in answer["instances"]]
        return found or [[None] * len(DETECTED[2:])]
    return [[*(answer["box"] or [None] * 4), answer["score"], answer["predicted_iou"]]]


def _print_row(cells: list) -> None:
    csv.writer(sys.stdout, dialect="excel-tab", lineterminator="\n").writerow(cells)
    sys.stdout.flush()


@app.command(short_help="Find all objects of a kind in an image.")
def detect(
    arguments: ImagesArgument,
    objects: Annotated[
        list[str] | None,
        typer.Option("--object", "-o", metavar="OBJECT", help="What to look for; can be given several times."),
    ] = None,
    lvlm: LVLMOption = "internvl-embedded",
    selector: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What scores the boxes: votes, or a selector that scores single ones.",
            autocompletion=_completed(_box_selectors),
        ),
    ] = "votes",
    samples: SamplesOption = 10,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Where a list is cut.")] = 512,
    head_set: HeadSetOption = None,
    regressor: RegressorOption = None,
    calibration: CalibrationOption = None,
    same: Annotated[
        float, typer.Option(min=0.01, max=1, metavar="IOU", help="From which overlap two boxes are one object.")
    ] = 0.5,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw the boxes of each image: a file, or a folder.")
    ] = None,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all instances.")] = False,
    as_coco: Annotated[
        Path | None,
        typer.Option(
            "--coco", metavar="FILE", callback=_out, help="Write them in COCO's results format, too, for COCOeval."
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The COCO-format file that has the ids for --coco.")
    ] = None,
) -> None:
    """Find all objects of a kind in an image: sample several lists of boxes, and score those that they agree on.

    Prints one line for each object that is found, tab-separated under a header: box in pixels of the image, score, and
    votes, the share of the answers that name it. None is one line without a box.

    \b
    acs detect street.jpg "traffic light"
    acs detect street.jpg park/ -o dog -o person --json > objects.jsonl
    acs detect holidays/ dog --out dogs.jsonl    # the same command goes on where it was stopped
    acs detect val2017/ -o dog -o cup --coco found.json --annotations instances_val2017.json
    """
    with report_user_errors(GOES_ON if out else "stopped"):
        names, objects = _asked(list(arguments), objects, "detect")
        _check_selector(selector, _box_selectors())
        _check_sampling(temperature, top_p)
        if (as_coco is None) != (annotations is None):
            raise typer.BadParameter("--coco and --annotations belong together")
        images, refused = _images(names)
        targets = _pictures(save, [(image, wanted) for image in images for wanted in objects])
        settings = {
            "selector": selector, "samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed,
            "max_new_tokens": max_new_tokens, "same": same, **_chosen_by(head_set, regressor, calibration),
        }  # fmt: skip
        from acs_lib.grounding.detect import coco_ids  # late: it takes seconds
        from acs_lib.grounding.detect import detect as find

        ids = coco_ids(annotations, images, objects) if annotations else ({}, {})
        loaded = _loaded(lvlm)

        def ask(picture, names: list[str]) -> list:
            return [find(loaded, picture, name, **settings) for name in names]

        if out is None and not as_json:
            _print_row(DETECTED)
        answers: dict = {}
        failed = _answer(
            loaded, images, refused, objects, targets, ask, as_json, out, {"command": "detect", **settings}, answers
        )
        if as_coco is not None:
            write_text(as_coco, json.dumps(_in_coco(answers, *ids)))
    raise typer.Exit(int(failed))


@app.command(short_help="A web page to try all this in.")
def demo(
    lvlm: LVLMOption = "internvl-embedded",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Whom it answers: 0.0.0.0 is everybody on the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Where it listens.", show_default="first free from 7860 on"),
    ] = None,
) -> None:
    """Serve a web page on this machine: a picture and objects in; candidates, chosen box and attention out.

    Uploads stay in a temporary folder that is removed at the end. Others than this machine are answered only with
    --host; they may choose the embedded LVLMs and the one of --lvlm.
    """
    with report_user_errors():
        from acs_lib.demo import serve  # late: it takes seconds

        serve(host, port, lvlm)


@app.command(short_help="Choose among answers of another engine.")
def score(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="A JSON object a line: image, object, answers, greedy.")
    ],
    lvlm: LVLMOption = "internvl-embedded",
    question: QuestionOption = None,
    selector: SelectorOption = "acs-free",
    head_set: HeadSetOption = None,
    regressor: RegressorOption = None,
    calibration: CalibrationOption = None,
    as_json: JSONOption = False,
) -> None:
    """Choose among answers that another engine (vLLM, SGLang, a server) sampled, by this LVLM's attention.

    Each line of ANSWERS is a question: image (a path, relative to the file's folder), object, answers (texts, lists of
    token ids, or objects with text or token_ids and logprobs), and greedy, the greedy answer, if there is one. Prints
    what acs ground prints. A line that cannot be answered is told, and the others are answered.

    \b
    acs score answers.jsonl --lvlm Qwen2.5-VL-7B --json > boxes.jsonl
    """
    with report_user_errors():
        _check_selector(selector, _methods())
        failed = _score(
            answers, lvlm, question, as_json, selector=selector, **_chosen_by(head_set, regressor, calibration)
        )
    raise typer.Exit(int(failed))


def _score(file: Path, lvlm_name: str, question: str | None, as_json: bool, **settings) -> bool:
    """Choose for all questions of a file and print the answers; True if a line could not be answered, or an object was
    not found."""
    from acs_lib.grounding import api  # late: it takes seconds
    from acs_lib.grounding.answers import read_questions

    questions = list(read_questions(file))
    lvlm = _loaded(lvlm_name, question)
    api.check_method(lvlm, **settings)
    if not as_json:
        _print_row(COLUMNS)
    failed = False
    for where, asked in tracked(questions, lvlm.name, unit="lines", printed=True):
        try:
            if isinstance(asked, ValueError):
                raise asked
            path = file.parent / asked.image
            result = api.score(lvlm, path, asked.object, asked.answers, asked.greedy, **settings)
        except (ValueError, OSError) as error:
            complain(f"error: {where}: {error}")
            failed = True
            continue
        failed |= _tell(path, result, as_json)
    return failed


@app.command(short_help="Try an LVLM: boxes, attention, seconds, memory.")
def probe(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files or folders of images.", show_default="shipped scenes"),
    ] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option("--object", "-o", metavar="OBJECT", help="What to look for in them; can be given several times."),
    ] = None,
    lvlm: LVLMOption = "internvl-embedded",
    question: QuestionOption = None,
    samples: SamplesOption = 3,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Where an answer is cut.")] = None,
) -> None:
    """Try an LVLM before anything long: ask it for objects in some images, and say how many answers hold a box, which
    layers give attention rows, and what a question takes in seconds and memory.

    Exit code 1 if fewer than half of the answers hold a box, or a layer gives no rows.

    \b
    acs probe --lvlm Qwen/Qwen2.5-VL-3B-Instruct
    acs probe street.jpg -o dog -o "traffic light" --lvlm OpenGVLab/InternVL3_5-1B-HF
    """
    with report_user_errors():
        if bool(images) != bool(objects):
            raise typer.BadParameter("give images and, with -o, what to look for in them, or neither")
        from acs_lib.grounding.probe import probe as try_out  # late: it takes seconds

        asked = None
        if images:
            files, _ = _images(images)
            asked = [(file, wanted) for file in files for wanted in objects]
        found = try_out(_loaded(lvlm, question), asked, samples, max_new_tokens)
        for line in found.lines():
            typer.echo(line)
    raise typer.Exit(int(not found.sound))


@app.command(short_help="Find D_c of an LVLM, train its regressor.")
def calibrate(
    lvlm: LVLMOption = "internvl-embedded",
    question: QuestionOption = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO-format file with boxes, or JSON lines of phrases.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The folder of its images.")] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "--objects",
            "-o",
            metavar="OBJECT",
            help="What most of the images show, instead of --annotations; can be given several times.",
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            metavar="UNITS",
            help="Of the boxes of phrases, such as 'xywh px' or 'xyxy 0-1000'.",
            autocompletion=_completed(_units),
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take over from this profile's finished run.", autocompletion=_profiles),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write to.", show_default="where acs ground finds the files"),
    ] = None,
    regressor: Annotated[bool, typer.Option(help="Write the regressor, too.")] = True,
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Licence that the folder's card states.")] = None,
    queries: Annotated[int, typer.Option(min=10, metavar="N", help="Objects to train on, at most.")] = 2000,
    small: Annotated[
        float, typer.Option(metavar="SHARE", help="Objects up to this share of the image are taken.")
    ] = 0.05,
    layers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Layers that D_c may lie in.", show_default="half of all, 10 at most"),
    ] = None,
    samples: SamplesOption = 10,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
) -> None:
    """Find the discriminative heads (D_c) of an LVLM, and train its regressor, from images with known boxes.

    Writes head_set.json, regressor.safetensors, and the thresholds of acs ground --risk (risk.json) and --effort auto
    (effort.json), a card and SHA256SUMS: a folder that can be shared (docs/calibration.md). An interrupted calibration
    goes on where it stopped. Without annotations, from images and the names of objects in them, it finds heads by how
    the LVLM's own answers agree, and nothing else.

    \b
    acs calibrate --lvlm owner/model --images photos/ -o car -o person
    acs calibrate --lvlm Qwen/Qwen2.5-VL-7B-Instruct --annotations instances.json --images train/
    acs calibrate --annotations refcoco.jsonl --units "xywh px" --images train/
    acs calibrate --profile embedded
    """
    with report_user_errors():
        given = [bool(each) for each in (profile, annotations, objects)]
        if sum(given) != 1 or bool(images) == bool(profile):
            raise typer.BadParameter("give --images with --annotations or with --object, or --profile alone")
        if annotations is not None and (annotations.suffix == ".jsonl") != (units is not None):
            raise typer.BadParameter("--units says how boxes are written in a file of phrases (.jsonl), in no other")
        from acs_lib.lvlms.load import asked_with, lvlm_spec  # late: it brings torch
        from acs_lib.study.calibrate import find_label_free, fit_heads, fit_thresholds, make_profile, publish

        if objects:
            spec, (files, _) = asked_with(lvlm_spec(lvlm), question), _images([str(images)])
            _check_sampling(temperature, top_p)
            _note(spec)
            how = profiles.sampling_of(spec.name, samples, temperature, top_p, seed)
            path, head_set, counts = find_label_free(spec, files, objects, how, out)
            complain(
                f"D_c of {head_set.lvlm} without annotations: {head_set.heads}, of {counts['answers']} answers to "
                f"{counts['questions']} questions; {counts['high']} agree with the others, {counts['zero']} lie apart"
            )
            typer.echo(path)
            return
        if profile is not None:
            chosen = profiles.load_profile(profile)
            if out is not None and len(chosen.lvlms) > 1:
                raise typer.BadParameter(f"profile {profile} has {len(chosen.lvlms)} LVLMs; leave --out away")
        else:
            spec = asked_with(lvlm_spec(lvlm), question)
            _note(spec)
            chosen = make_profile(
                spec, annotations, images, queries=queries, small=small, layers=layers, samples=samples,
                temperature=temperature, top_p=top_p, seed=seed, units=units,
            )  # fmt: skip
            head_set, table, r = fit_heads(chosen)
            complain(f"D_c of {head_set.lvlm}, AUROC of low entropy for good boxes (chance is 0.5):")
            complain(table.to_string(index=False, float_format="{:.3f}".format))
            complain(f"regressor: Pearson r {r:.3f} on the validation images")
        fit_thresholds(chosen)
        for path in publish(chosen, out, regressor, licence):
            typer.echo(path)


@app.command(short_help="Run a profile and write its report.")
def run(
    profile: ProfileOption = "embedded",
    start: Annotated[
        int | None, typer.Option("--from", metavar="N", min=0, help="Run notebook N and the later ones anew.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say which notebooks would run and, for a GPU's profile, at what cost."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="A first look: at most N queries of each size and split, in <profile>-first-N."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Who samples: this machine, or the workers of a Ray cluster (docs/scale_out.md)."),
    ] = "local",
) -> None:
    """Run a profile's notebooks in order; finished ones are reused as long as nothing they depend on has changed.

    The executed notebooks, tables, figures and index.html land in reports/<profile>.
    """
    with report_user_errors("stopped; the same command goes on with the notebook that was running", ADVICE):
        from acs_lib import runner  # late: it brings Jupyter

        begun = time.perf_counter()
        page = runner.run(profile, start, dry_run, limit, engine)
        if page is not None:
            typer.echo(f"finished in {time.perf_counter() - begun:.0f} s; look at {page}")


@app.command(short_help="Build a finished run's page anew.")
def report(profile: ProfileOption = "embedded") -> None:
    """Build index.html of a finished run anew and say where it is.

    For the paper's own LVLMs and data it can be built at any time: what was not run is marked as such.
    """
    with report_user_errors():
        from acs_lib.report import page, tables  # late: they take seconds

        chosen = profiles.load_profile(profile)
        compared = tables.write_comparison(chosen, paths.reports(profile))
        if not compared and not (paths.reports(profile) / "manifest.json").is_file():
            raise FileNotFoundError(f"profile {profile} has no finished run; run acs run --profile {profile}")
        typer.echo(page.build(profile))


@app.command(short_help="Did a run reproduce another?")
def compare(
    found: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A profile with a finished run, or a report's folder.", autocompletion=_profiles
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REFERENCE",
            help="The same.",
            show_default="the committed reference of the profile",
            autocompletion=_profiles,
        ),
    ] = None,
) -> None:
    """Compare the tables of a run with those of another one, number by number, within what another processor's rounding
    does to each (docs/processors.md). Exit code 1 where something differs.

    \b
    acs compare embedded
    acs compare reports/embedded /elsewhere/reports/embedded
    """
    with report_user_errors():
        from acs_lib.evaluation import compare as comparing  # late: it takes a moment

        folders = []
        for name in (reference, found):
            if name is None:
                place = paths.reference(Path(found).expanduser().resolve().name)
            else:
                place = Path(name).expanduser() if Path(name).expanduser().is_dir() else paths.reports(name)
            folders.append(place / "tables" if (place / "tables").is_dir() else place)
            if not any(folders[-1].glob("*.csv")):
                raise FileNotFoundError(f"there are no tables in {folders[-1]}; give a profile that ran, or its report")
        said, differences = comparing.summary(*folders)
        for line in (said, *differences):
            typer.echo(line)
    raise typer.Exit(int(bool(differences)))


@app.command(short_help="List what runs left, and remove it by name.")
def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="What to remove, by name.",
            show_default="nothing: list what there is",
            autocompletion=_completed(_runs),
        ),
    ] = None,
) -> None:
    """List what runs have left on the disk (data/runs, reports), with size and age; or remove those that are named.

    The committed references are left alone, and so is a run that another process is writing to.
    """
    with report_user_errors():
        from acs_lib import clean as cleaning  # late: it brings pyarrow

        for each in cleaning.remove(names) if names else cleaning.left():
            typer.echo(f"{each.line}\tremoved" if names else each.line)


@app.command(short_help="Take over a run as the reference.")
def accept(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A profile with a finished run.", autocompletion=_profiles)
    ],
) -> None:
    """Take over a finished run as the committed reference in reports/reference/<profile>, which it replaces.

    The notebooks that name the profile as their default take over its outputs; of such a profile (smoke) the reference
    is tables/*.csv alone. Prints what differs from the old reference's tables.
    """
    with report_user_errors():
        from acs_lib import accept  # late: it brings Jupyter

        differences = accept.accept(profile)
        for line in differences[:20]:
            typer.echo(line)
        if len(differences) > 20:
            typer.echo(f"... and {len(differences) - 20} more")
        typer.echo(f"{paths.reference(profile)}: {len(differences)} differences from the reference before")


@app.command(short_help="Train an embedded LVLM anew.")
def train_embedded(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY", help="The family: internvl or qwen2_5_vl.", autocompletion=_completed(_families)
        ),
    ] = "internvl",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the LVLM is written.", show_default="data/embedded/<family>"),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where checkpoints are kept.", show_default="~/.local/share/acs-kit/train/<family>"
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Only the habit's stages, from these weights (data/embedded/<family>-plain).",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda or mps.")] = "cpu",
    anew: Annotated[bool, typer.Option("--anew", help="Throw away the checkpoints of an earlier training.")] = False,
) -> None:
    """Train an embedded LVLM on rendered scenes: first without its habit (written to FOLDER-plain), then with it. Goes
    on from its last checkpoint.

    Four to five hours on one core, no stage of it above 70 minutes; two cores take two thirds of that.
    """
    with report_user_errors():
        from acs_lib.embedded import training  # late: it brings torch

        if family not in training.TINY:
            raise ValueError(f"no embedded LVLM is called {family!r}; choose one of {', '.join(training.TINY)}")
        folder, work = folder or paths.EMBEDDED / family, work or paths.users() / "train" / family
        if anew:
            shutil.rmtree(work, ignore_errors=True)
        if start is None:
            start = folder.with_name(f"{folder.name}-plain")
            digest = training.train(family, start, work, training.RECIPE, device=device)
            typer.echo(f"{start}: weights {digest}")
        digest = training.train(family, folder, work / "habit", training.HABIT, start=start, device=device)
        typer.echo(f"{folder}: weights {digest}")


@app.command(short_help="Fetch COCO or Objects365.")
def data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="The dataset: coco or objects365.", autocompletion=_completed(_datasets)
        ),
    ],
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The profile whose queries decide which images are fetched.",
            autocompletion=_profiles,
        ),
    ] = "paper",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many queries of each size and split.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An annotation file that you have already.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The folder of its images.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror's address, with the files under the same names.")
    ] = None,
) -> None:
    """Fetch the annotations of COCO or Objects365 and the images that the profile's queries need.

    The same command goes on where it stopped. With --annotations and --images nothing is fetched: what is on disk is
    linked to where the profile looks for it, and checked. Exit code 1 if images are missing.
    """
    with report_user_errors():
        from acs_lib.datasets import download  # late: it brings torch

        if (annotations is None) != (images is None):
            raise typer.BadParameter("--annotations and --images belong together")
        chosen = profiles.load_profile(f"{profile}-first-{limit}" if limit else profile)
        if annotations is None:
            typer.echo(f"by fetching you agree to: {download.source(name).licence}")
            found = download.get(chosen, name, base)
        else:
            found = download.link(chosen, name, annotations, images)
        typer.echo(download.say(*found))
        if found[1].missing:
            complain("a run goes on without what is missing; the same command tries again")
            raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="acs")
