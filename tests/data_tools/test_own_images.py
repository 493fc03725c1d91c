"""Own pictures made ready by --prepare_folder."""

import json
import shlex
import shutil

import numpy as np
import pytest
from originals import SIDE, Maker, numbers, tree
from PIL import Image
from test_annotations import SQUARE, coco, labelme, labelme_shape, studio, written
from test_prepare import TINY, counts, read

from data_tools.category_writer import NOTE


@pytest.fixture
def own(tmp_path):
    """<tmp>/own: 12 normal pictures in good/, two defective ones of one name in defects/scratch and defects/dent."""
    make = Maker(tmp_path / "own")
    make.picture(*numbers("good/{:03}.png", 12), "defects/scratch/000.png", "defects/dent/000.png")
    return make


@pytest.fixture
def prepare(run_main, tmp_path):
    """prepare("--defects", …) → (exit code, output, error) of --prepare_folder own/good; what it makes is in data/part."""

    def run(*arguments):
        given = [
            str(tmp_path / "own" / argument) if argument in ("defects", "masks", "defects.json") else argument
            for argument in arguments
        ]
        return run_main("--prepare_folder", str(tmp_path / "own/good"), "data.category=part", *given, *TINY)

    return run


def mask(tmp_path, kind="scratch", stem="000"):
    return read(tmp_path / "data/part/ground_truth" / kind / f"{stem}_mask.png") > 0


def test_normal_pictures_alone_are_enough_to_train_calibrate_and_score(own, prepare, run_main, tmp_path):
    before = tree(own.root)
    code, out, err = prepare()
    assert code == 0, err
    assert counts(tmp_path / "data/part") == (10, 2, 0)
    assert json.loads((tmp_path / "data/part" / NOTE).read_text())["data set"] == "own pictures"
    code, out, err = run_main(*shlex.split(out.splitlines()[-1].removeprefix("next: python main.py ")))
    assert code == 0, err
    assert (
        "2 pictures (2 normal, 0 defective)" in out
        and "– (needs normal and defective pictures in test)" in out
        and "false alarms" in out
    )
    assert (tmp_path / "results/scores.csv").read_text().count("\n") == 3
    code, out, err = run_main("--detection", "data.category=part", "data.mask=False", *TINY)
    assert code == 0, err
    code, _, err = run_main(
        "--detection",
        "data.category=part",
        "--input",
        str(own.root / "defects"),
        "--output",
        str(tmp_path / "new"),
        *TINY,
    )
    assert code == 0, err
    assert tree(own.root) == before


def test_kinds_come_from_folders_and_masks_are_found_by_name(own, prepare, run_main, tmp_path):
    own.picture("defects/plain.jpg", "defects/deep/line 1/x.bmp", "defects/deep_line 1/y.bmp")
    own.mask("masks/y.png")
    own.mask("masks/scratch/000.png", corner=4)
    own.mask("masks/dent/000_mask.png", corner=20)
    own.mask("masks/plain_label.png", "masks/x_GT.bmp")
    code, out, err = prepare("--defects", "defects", "--masks", "masks")
    assert code == 0, err
    made = tmp_path / "data/part"
    assert sorted(
        path.relative_to(made).as_posix() for path in made.glob("test/*/*") if path.parent.name != "good"
    ) == [
        "test/bad/plain.jpg",
        "test/deep_line 1/x.bmp",
        "test/deep_line 1/y.bmp",
        "test/dent/000.png",
        "test/scratch/000.png",
    ]
    assert (
        mask(tmp_path)[4:16, 4:16].all()
        and mask(tmp_path, "dent")[20:32, 20:32].all()
        and mask(tmp_path, "bad", "plain").sum() == 144
    )
    code, out, err = run_main(*shlex.split(out.splitlines()[-1].removeprefix("next: python main.py ")))
    assert code == 0 and "5 defective" in out and "pixel AUROC" in out, err


def test_masks_may_lie_beside_their_pictures(own, prepare, tmp_path):
    own.mask("defects/scratch/000_mask.png", "defects/dent/000_mask.png")
    code, _, err = prepare("--defects", "defects")
    assert code == 0, err
    assert counts(tmp_path / "data/part") == (10, 2, 2) and mask(tmp_path).sum() == 144


def test_defects_may_lie_around_and_beside_the_normal_pictures(own, prepare, run_main, tmp_path):
    code, _, err = prepare("--defects", str(own.root))
    assert code == 0, err
    assert counts(tmp_path / "data/part")[:2] == (10, 2)
    assert sorted(path.name for path in (tmp_path / "data/part/test").iterdir()) == [
        "defects_dent",
        "defects_scratch",
        "good",
    ]


def test_the_next_command_adapts_where_detection_takes_adapted_features(own, prepare, run_main):
    _, out, _ = prepare("model.DA_chp=1")
    code, out, err = run_main(*shlex.split(out.splitlines()[-1].removeprefix("next: python main.py ")))
    assert code == 0 and "Adapting" in out, err


def test_a_budget_leaves_the_epochs_to_the_plan(own, run_main):
    _, out, _ = run_main(
        "--prepare_folder", str(own.root / "good"), "data.category=part", "preset=laptop", "budget_minutes=10"
    )
    assert "epochs" not in out.splitlines()[-1] and "budget_minutes=10" in out.splitlines()[-1]


def test_without_masks_the_next_command_says_so(own, prepare, tmp_path):
    code, out, _ = prepare("--defects", "defects")
    assert (
        code == 0
        and "warning: 2 defective pictures of part have no mask" in out
        and "data.mask=False" in out.splitlines()[-1]
    )
    assert not (tmp_path / "data/part/ground_truth").exists()


def write_labelme(own):
    for kind in ("scratch", "dent"):
        written(own.root / f"defects/{kind}/000.json", labelme([labelme_shape("polygon", SQUARE)], size=(SIDE, SIDE)))


def write_coco(own):
    content = coco([[value for point in SQUARE for value in point]])
    size = {"width": SIDE, "height": SIDE}
    content["images"][:] = [
        {"id": number, "file_name": f"{kind}/000.png", **size} for number, kind in ((7, "scratch"), (8, "dent"))
    ]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 8})
    written(own.root / "defects.json", content)


def write_label_studio(own):
    value = {"points": [[x / SIDE * 100, y / SIDE * 100] for x, y in SQUARE]}
    result = {"type": "polygonlabels", "value": value, "original_width": SIDE, "original_height": SIDE}
    places = [f"/data/local-files/?d={kind}/000.png" for kind in ("scratch", "dent")]
    written(own.root / "defects.json", [task for place in places for task in studio(result, image=place)])


FROM_FILE = ("--masks", "defects.json")


@pytest.mark.parametrize(
    ("write", "masks"), [(write_labelme, ()), (write_coco, FROM_FILE), (write_label_studio, FROM_FILE)]
)
def test_masks_are_drawn_from_annotations(write, masks, own, prepare, tmp_path):
    write(own)
    code, out, err = prepare("--defects", "defects", *masks)
    assert code == 0, err
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[6:20, 5:15] = True
    for kind in ("scratch", "dent"):
        np.testing.assert_array_equal(mask(tmp_path, kind), wanted)
    assert "warning" not in out


def test_near_duplicates_are_on_one_side(own, prepare, tmp_path):
    """Of normal pictures, and of those that also stand among the defective ones."""
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).resize((256, 256))
        picture.save(own.root / f"good/{number:03}.png")
        picture.resize((128, 128)).save(own.root / f"good/copy {number:03}.jpg", quality=80)
    shutil.copy(own.root / "good/004.png", own.root / "defects/dent/again.png")
    for seed in range(4):
        made = tmp_path / f"seed{seed}"
        assert prepare("--defects", "defects", f"model.seed={seed}", "--output", str(made))[0] == 0
        train, test = (
            {path.stem[-3:] for path in (made / "part" / side / "good").iterdir()} for side in ("train", "test")
        )
        assert not train & test and train | test == set(numbers("{:03}", 12)) and "004" in test


def test_names_of_subfolders_keep_pictures_apart(own, prepare, tmp_path):
    own.picture("good/a/000.png", "good/000.jpg")
    assert prepare()[0] == 0
    names = {path.name for path in (tmp_path / "data/part").glob("*/good/*")}
    assert {"a_000.png", "000_jpg.jpg", "000_png.png"} <= names and len(names) == 14


def test_defects_within_the_normal_folder_are_not_normal(own, run_main, tmp_path):
    code, _, err = run_main(
        "--prepare_folder", str(own.root), "--defects", str(own.root / "defects"), "data.category=part", *TINY
    )
    assert code == 0, err
    assert counts(tmp_path / "data/part") == (10, 2, 2)


@pytest.mark.parametrize(("folder", "name"), [("good", "own"), ("bolts", "bolts")])
def test_a_category_is_named_after_its_folder(folder, name, own, run_main, tmp_path):
    (own.root / "good").rename(own.root / folder)
    assert run_main("--prepare_folder", str(own.root / folder), "--output", str(tmp_path / "out"))[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_turned_pictures_have_masks_of_their_upright_size(own, prepare, tmp_path):
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(own.root / "defects/dent/turned.jpg", exif=exif)
    written(own.root / "defects/dent/turned.json", labelme([labelme_shape("polygon", SQUARE)], size=(40, 60)))
    write_labelme(own)
    code, _, err = prepare("--defects", "defects")
    assert code == 0, err
    assert mask(tmp_path, "dent", "turned").shape == (60, 40)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda own: own.mask("masks/dent/000.png"), "would be the mask of both"),
        (lambda own: own.mask("masks/dent/001.png"), "no mask for"),
        (lambda own: (own.root / "masks").mkdir(), "no masks in"),
        (lambda own: None, "no masks at"),
        (
            lambda own: own.mask(
                *(f"masks/{kind}/000{end}.png" for kind in ("dent", "scratch") for end in ("", "_mask"))
            ),
            "may both be the mask of",
        ),
        (
            lambda own: [own.picture("defects/good/001.png"), own.mask("masks/dent/000.png")],
            "holds normal pictures by its name",
        ),
        (
            lambda own: [(own.root / "masks").mkdir(), (own.root / "masks/odd.json").write_text("{}")],
            "can't be read as LabelMe, COCO or",
        ),
        (
            lambda own: [(own.root / "defects/dent/000.png").write_bytes(b"odd"), own.mask("masks/000.png")],
            "its content is not a picture",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(spoil, said, own, prepare, tmp_path):
    spoil(own)
    code, _, err = prepare("--defects", "defects", "--masks", "masks")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "data/part").exists()


def test_a_mask_of_another_size_is_said_and_once_corrected_all_is_made(own, prepare, tmp_path):
    Image.new("L", (9, 9), 255).save(own.root / "defects/scratch/000_mask.png")
    own.mask("defects/dent/000_mask.png")
    code, _, err = prepare("--defects", "defects")
    assert code == 2 and "000_mask.png is 9×9, its picture" in err and "48×48; make them the same" in err
    own.mask("defects/scratch/000_mask.png")
    code, out, err = prepare("--defects", "defects")
    assert code == 0 and "not finished; it is made anew" in out, err
    assert mask(tmp_path).sum() == 144
