"""Gather what benchmarks/card.py needs on another machine: the code, a category in small, and packages.

    python -m benchmarks.card_bundle DATA_DIR/CATEGORY --out FOLDER [--wheels FOLDER] [--size 256] [--most 64]

FOLDER gets code/ (the files that git tracks), data/CATEGORY/ (images and masks of --size pixels, as the network and the
metrics see them), wheels/ and run.sh. `sh FOLDER/run.sh 9` runs the command for 9 minutes and writes FOLDER/out. It is
an error if all that is larger than --most MiB.
"""

import argparse
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.shared import ROOT
from dataset import ImageFolder, View
from images.read import read_mask
from runtime.device import MEBI
from runtime.errors import UserError

SIZE = 256  # pixels, of the published network and of the metrics
MOST = 64.0  # MiB
SCRIPT = """\
#!/bin/sh
# sh run.sh MINUTES [ARGUMENT …]: needs python3 with the packages of code/requirements.txt but those in wheels/
minutes=${{1:?how many minutes}} && shift
here=$(cd "$(dirname "$0")" && pwd)
ls "$here"/wheels/*.whl >/dev/null 2>&1 &&
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target "$here/site" "$here"/wheels/*.whl
cd "$here/code" && PYTHONPATH="$here/site" exec python3 -m benchmarks.card \\
    --minutes "$minutes" --data "$here"/data/{category} --out "$here/out" --work "$here/work" "$@"
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.card_bundle", description="Gathers what benchmarks.card needs on another machine."
    )
    parser.add_argument("category", type=Path, metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that does not exist")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages that the other machine lacks")
    parser.add_argument("--size", type=int, default=SIZE, help="width and height of images and masks, in pixels")
    parser.add_argument("--most", type=float, default=MOST, help="MiB that may travel")
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise UserError(f"{options.out} exists; remove it, or choose another folder with --out")
    copy_code(options.out / "code")
    shrink_category(options.category, options.out / "data" / options.category.name, options.size)
    if options.wheels:
        shutil.copytree(options.wheels, options.out / "wheels")
    script = SCRIPT.format(category=shlex.quote(options.category.name))
    (options.out / "run.sh").write_text(script, encoding="utf-8")
    sizes = {part: folder_size(options.out / part) for part in ("code", "data", "wheels")}
    for part, size in sizes.items():
        print(f"{part}: {size:.1f} MiB")
    if (total := sum(sizes.values())) > options.most:
        remedy = "take a category with fewer images, or a lower --size"
        raise UserError(f"{options.out} is {total:.1f} MiB, more than the {options.most:g} that may travel; {remedy}")
    print(f"{total:.1f} MiB in {options.out}; there: sh {options.out.name}/run.sh MINUTES")


def copy_code(target: Path) -> None:
    """Copy the files that git tracks, as they are now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def shrink_category(source: Path, target: Path, size: int) -> None:
    """Write the images and masks of a category as PNG files of `size` pixels: what the network sees is the same."""
    view = View(size)
    for split in ("train", "test"):
        pictures = ImageFolder(source, split, view)
        for sample in pictures.samples:
            pixels, own_size = view.read(sample.picture)
            path = target / split / sample.kind / f"{sample.picture.stem}.png"
            save_picture(Image.fromarray(pixels.permute(1, 2, 0).numpy()), path)
            if sample.mask is not None:
                mask = read_mask(sample.mask, own_size, sample.picture, (size, size))
                save_picture(Image.fromarray(mask), target / "ground_truth" / sample.kind / f"{path.stem}_mask.png")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save a picture under a new name. Raise UserError if two pictures would have one name."""
    if path.exists():
        raise UserError(f"{path} exists: two images have this name before their endings; rename one of them")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def folder_size(folder: Path) -> float:
    """Return the MiB of all files in a folder; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MEBI


if __name__ == "__main__":
    main()
