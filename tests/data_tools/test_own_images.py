"""--prepare_folder makes a category of the user's own pictures, masks and annotations."""

import json
import shlex
import shutil

import numpy as np
import pytest
from annotation_files import SQUARE, coco, label_studio, labelme, labelme_shape, write_json
from originals import QUICK, SIDE, Maker, count_pictures, numbers, read_pixels, tree
from PIL import Image

from data_tools.category_writer import NOTE


@pytest.fixture
def own(tmp_path):
    """<tmp>/own: 12 normal pictures in good, two defective ones of one name in defects/scratch and defects/dent."""
    make = Maker(tmp_path / "own")
    make.picture(*numbers("good/{:03}.png", 12), "defects/scratch/000.png", "defects/dent/000.png")
    return make


@pytest.fixture
def prepare(run_main, tmp_path):
    """prepare("--defects", …) → (exit code, output, error) of --prepare_folder own/good into data/part."""

    def run(*arguments):
        inside = ("defects", "masks", "defects.json")
        words = [str(tmp_path / "own" / word) if word in inside else word for word in arguments]
        return run_main("--prepare_folder", str(tmp_path / "own/good"), "data.category=part", *words, *QUICK)

    return run


@pytest.fixture
def run_next(run_main):
    """run_next(output) → (exit code, output, error) of the command that the preparation printed last."""
    return lambda out: run_main(*shlex.split(out.splitlines()[-1].removeprefix("next: python main.py ")))


def mask(tmp_path, kind="scratch", stem="000"):
    return read_pixels(tmp_path / "data/part/ground_truth" / kind / f"{stem}_mask.png") > 0


def test_normal_pictures_alone_are_enough_to_train_calibrate_and_score(own, prepare, run_main, run_next, tmp_path):
    before = tree(own.root)
    code, out, err = prepare()
    assert code == 0, err
    assert count_pictures(tmp_path / "data/part") == (10, 2, 0)
    assert json.loads((tmp_path / "data/part" / NOTE).read_text())["data set"] == "own pictures"
    code, out, err = run_next(out)
    assert code == 0, err
    assert "2 pictures (2 normal, 0 defective)" in out and "false alarms" in out
    assert "– (needs normal and defective pictures in test)" in out
    assert (tmp_path / "results/scores.csv").read_text().count("\n") == 3
    code, out, err = run_main("--detection", "data.category=part", "data.mask=False", *QUICK)
    assert code == 0, err
    source, target = ("--input", str(own.root / "defects")), ("--output", str(tmp_path / "new"))
    code, _, err = run_main("--detection", "data.category=part", *source, *target, *QUICK)
    assert code == 0, err
    assert tree(own.root) == before


def test_folders_name_the_kinds_and_masks_are_found_by_name(own, prepare, run_next, tmp_path):
    own.picture("defects/plain.jpg", "defects/deep/line 1/x.bmp", "defects/deep_line 1/y.bmp")
    own.mask("masks/y.png")
    own.mask("masks/scratch/000.png", corner=4)
    own.mask("masks/dent/000_mask.png", corner=20)
    own.mask("masks/plain_label.png", "masks/x_GT.bmp")
    code, out, err = prepare("--defects", "defects", "--masks", "masks")
    assert code == 0, err
    test = tmp_path / "data/part/test"
    assert {path.relative_to(test).as_posix() for path in test.glob("*/*") if path.parent.name != "good"} == {
        "bad/plain.jpg",
        "deep_line 1/x.bmp",
        "deep_line 1/y.bmp",
        "dent/000.png",
        "scratch/000.png",
    }
    assert mask(tmp_path)[4:16, 4:16].all() and mask(tmp_path, "dent")[20:32, 20:32].all()
    assert mask(tmp_path, "bad", "plain").sum() == 144
    code, out, err = run_next(out)
    assert code == 0 and "5 defective" in out and "pixel AUROC" in out, err


def test_masks_may_lie_beside_their_pictures(own, prepare, tmp_path):
    own.mask("defects/scratch/000_mask.png", "defects/dent/000_mask.png")
    code, _, err = prepare("--defects", "defects")
    assert code == 0, err
    assert count_pictures(tmp_path / "data/part") == (10, 2, 2) and mask(tmp_path).sum() == 144


def test_the_folder_of_defects_may_contain_the_normal_pictures(own, prepare, tmp_path):
    code, _, err = prepare("--defects", str(own.root))
    assert code == 0, err
    assert count_pictures(tmp_path / "data/part")[:2] == (10, 2)
    kinds = {path.name for path in (tmp_path / "data/part/test").iterdir()}
    assert kinds == {"defects_dent", "defects_scratch", "good"}


def test_the_next_command_adapts_where_detection_takes_adapted_features(own, prepare, run_next):
    _, out, _ = prepare("model.DA_chp=1")
    code, out, err = run_next(out)
    assert code == 0 and "Adapting" in out, err


def test_with_a_budget_the_next_command_leaves_the_epochs_open(own, run_main):
    settings = ("data.category=part", "preset=laptop", "budget_minutes=10")
    _, out, _ = run_main("--prepare_folder", str(own.root / "good"), *settings)
    assert "epochs" not in out.splitlines()[-1] and "budget_minutes=10" in out.splitlines()[-1]


def test_without_masks_the_next_command_sets_mask_to_false(own, prepare, tmp_path):
    code, out, _ = prepare("--defects", "defects")
    assert code == 0 and "warning: 2 defective pictures of part have no mask" in out
    assert "data.mask=False" in out.splitlines()[-1] and not (tmp_path / "data/part/ground_truth").exists()


def write_labelme(own):
    for kind in ("scratch", "dent"):
        content = labelme([labelme_shape("polygon", SQUARE)], size=(SIDE, SIDE))
        write_json(own.root / f"defects/{kind}/000.json", content)


def write_coco(own):
    content = coco([[value for point in SQUARE for value in point]])
    size = {"width": SIDE, "height": SIDE}
    names = {7: "scratch/000.png", 8: "dent/000.png"}
    content["images"] = [{"id": number, "file_name": name, **size} for number, name in names.items()]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 8})
    write_json(own.root / "defects.json", content)


def write_label_studio(own):
    value = {"points": [[x / SIDE * 100, y / SIDE * 100] for x, y in SQUARE]}
    result = {"type": "polygonlabels", "value": value, "original_width": SIDE, "original_height": SIDE}
    addresses = [f"/data/local-files/?d={kind}/000.png" for kind in ("scratch", "dent")]
    tasks = [task for address in addresses for task in label_studio(result, image=address)]
    write_json(own.root / "defects.json", tasks)


FROM_FILE = ("--masks", "defects.json")


@pytest.mark.parametrize(
    ("write", "masks"), [(write_labelme, ()), (write_coco, FROM_FILE), (write_label_studio, FROM_FILE)]
)
def test_masks_are_drawn_from_annotations(write, masks, own, prepare, tmp_path):
    write(own)
    code, out, err = prepare("--defects", "defects", *masks)
    assert code == 0, err
    expected = np.zeros((SIDE, SIDE), bool)
    expected[6:20, 5:15] = True
    for kind in ("scratch", "dent"):
        np.testing.assert_array_equal(mask(tmp_path, kind), expected)
    assert "warning" not in out


def test_near_duplicates_are_on_one_side_and_those_of_defective_pictures_in_test(own, prepare, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).resize((256, 256))
        picture.save(own.root / f"good/{number:03}.png")
        picture.resize((128, 128)).save(own.root / f"good/copy {number:03}.jpg", quality=80)
    shutil.copy(own.root / "good/004.png", own.root / "defects/dent/again.png")
    for seed in range(4):
        category = tmp_path / f"seed{seed}" / "part"
        assert prepare("--defects", "defects", f"model.seed={seed}", "--output", str(category.parent))[0] == 0
        train, test = ({path.stem[-3:] for path in (category / side / "good").iterdir()} for side in ("train", "test"))
        assert not train & test and train | test == set(numbers("{:03}", 12)) and "004" in test


def test_equal_names_in_subfolders_stay_distinct(own, prepare, tmp_path):
    own.picture("good/a/000.png", "good/000.jpg")
    assert prepare()[0] == 0
    names = {path.name for path in (tmp_path / "data/part").glob("*/good/*")}
    assert {"a_000.png", "000_jpg.jpg", "000_png.png"} <= names and len(names) == 14


def test_defects_inside_the_normal_folder_are_not_normal(own, run_main, tmp_path):
    defects = ("--defects", str(own.root / "defects"))
    code, _, err = run_main("--prepare_folder", str(own.root), *defects, "data.category=part", *QUICK)
    assert code == 0, err
    assert count_pictures(tmp_path / "data/part") == (10, 2, 2)


@pytest.mark.parametrize(("folder", "name"), [("good", "own"), ("bolts", "bolts")])
def test_a_category_is_named_after_its_folder(folder, name, own, run_main, tmp_path):
    (own.root / "good").rename(own.root / folder)
    assert run_main("--prepare_folder", str(own.root / folder), "--output", str(tmp_path / "out"))[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_masks_of_pictures_with_an_exif_orientation_are_upright(own, prepare, tmp_path):
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(own.root / "defects/dent/turned.jpg", exif=exif)
    write_json(own.root / "defects/dent/turned.json", labelme([labelme_shape("polygon", SQUARE)], size=(40, 60)))
    write_labelme(own)
    code, _, err = prepare("--defects", "defects")
    assert code == 0, err
    assert mask(tmp_path, "dent", "turned").shape == (60, 40)


def two_masks_each(own):
    own.mask(*(f"masks/{kind}/000{ending}.png" for kind in ("dent", "scratch") for ending in ("", "_mask")))


def defect_in_good(own):
    own.picture("defects/good/001.png")
    own.mask("masks/dent/000.png")


def empty_annotation(own):
    (own.root / "masks").mkdir()
    (own.root / "masks/odd.json").write_text("{}")


def text_as_picture(own):
    (own.root / "defects/dent/000.png").write_bytes(b"odd")
    own.mask("masks/000.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.mask("masks/dent/000.png"), "would be the mask of both"),
        (lambda own: own.mask("masks/dent/001.png"), "no mask for"),
        (lambda own: (own.root / "masks").mkdir(), "no masks in"),
        (lambda own: None, "no masks at"),
        (two_masks_each, "may both be the mask of"),
        (defect_in_good, "is named as normal pictures"),
        (empty_annotation, "can't be read as LabelMe, COCO or"),
        (text_as_picture, "its content is not a picture"),
    ],
)
def test_inconsistent_masks_end_with_an_error_before_anything_is_written(change, message, own, prepare, tmp_path):
    change(own)
    code, _, err = prepare("--defects", "defects", "--masks", "masks")
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "data/part").exists()


def test_after_a_mask_of_another_size_is_corrected_the_preparation_is_complete(own, prepare, tmp_path):
    Image.new("L", (9, 9), 255).save(own.root / "defects/scratch/000_mask.png")
    own.mask("defects/dent/000_mask.png")
    code, _, err = prepare("--defects", "defects")
    assert code == 2 and "000_mask.png is 9×9, its picture" in err and "48×48; make them the same size" in err
    own.mask("defects/scratch/000_mask.png")
    code, out, err = prepare("--defects", "defects")
    assert code == 0 and "not finished; it is removed and prepared again" in out, err
    assert mask(tmp_path).sum() == 144
