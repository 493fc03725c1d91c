"""Each fault is found, by itself and among all; what is in order is not complained of."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture
from PIL import Image

import main
from data_tools import similarity
from data_tools.check import examine_category, quick_check, sheet_rows
from data_tools.check_output import brief_findings
from data_tools.image_facts import read_all_facts

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def normal(rng: np.random.Generator, noise: float = 6) -> np.ndarray:
    """A disc on a plain ground, never quite in the same place or light."""
    down, across = 32 + rng.normal(0, 1.5, 2)
    inside = np.hypot(ROWS - down, COLUMNS - across) < 18
    grey = np.where(inside, 150, 70) + rng.normal(0, 4) + rng.normal(0, noise, inside.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def sound(tmp_path) -> Path:
    """<tmp>/data/disc: 40 normal pictures, 5 normal and 5 cracked ones to test, with masks."""
    rng, folder = np.random.default_rng(1), tmp_path / "data" / "disc"
    for number in range(40):
        write_picture(folder / "train" / "good" / f"{number:03}.png", normal(rng))
    for number in range(5):
        write_picture(folder / "test" / "good" / f"{number:03}.png", normal(rng))
        cracked, mask = normal(rng), np.zeros((SIDE, SIDE), np.uint8)
        mask[20 + number : 40, 30:33] = 255
        cracked[mask > 0] = 230
        write_picture(folder / "test" / "crack" / f"{number:03}.png", cracked)
        write_picture(folder / "ground_truth" / "crack" / f"{number:03}_mask.png", mask)
    return folder


def few(folder):
    for path in sorted((folder / "train" / "good").iterdir())[9:]:
        path.unlink()


def cut(folder):
    path = folder / "train" / "good" / "003.png"
    path.write_bytes(path.read_bytes()[:900])


def again(source: str, target: str, **keywords):
    return lambda folder: Image.open(folder / source).save(folder / target, **keywords)


def jpeg(target: str):
    return again(TRAIN, target, quality=98, subsampling=0)


def brighter(folder):
    path = folder / "train" / "good" / "007.png"
    Image.open(path).point(lambda value: min(255, 2 * value)).save(path)


def twelve_bits(folder):
    for path in (folder / "train" / "good").iterdir():
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        write_picture(path, values)


def grey_mask(folder):
    write_picture(
        folder / "ground_truth/crack/002_mask.png", np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)).astype(np.uint8)
    )


def another_thing(folder):
    stripes = np.repeat((COLUMNS // 4 % 2 * 120 + 60)[..., None], 3, axis=2).astype(np.uint8)
    write_picture(folder / "train/good/007.png", stripes)


def spot(folder):
    pixels = np.array(Image.open(folder / "train/good/007.png"))
    pixels[26:36, 26:36] = 10
    write_picture(folder / "train/good/007.png", pixels)


def stretched(folder):
    Image.open(folder / TRAIN).resize((SIDE, 2 * SIDE)).save(folder / TRAIN)


def moved(source: str, target: str):
    return lambda folder: (folder / source).rename(folder / target)


def picture(name: str, value: int):
    return lambda folder: write_picture(folder / name, np.full((SIDE, SIDE, 3), value, np.uint8))


def mask(name: str, shape=(SIDE, SIDE)):
    return lambda folder: write_picture(folder / name, np.full(shape, 0 if shape == (SIDE, SIDE) else 255, np.uint8))


TRAIN, TRUTH = "train/good/007.png", "ground_truth/crack/002_mask.png"
FAULTS = {  # how it comes, the finding, its level, its count, and a file that is named
    "no training pictures": (
        lambda folder: shutil.rmtree(folder / "train"),
        "no training pictures",
        "error",
        1,
        "train/good",
    ),
    "few training pictures": (few, "only 9 training pictures", "warning", 1, "train/good"),
    "no test": (lambda folder: shutil.rmtree(folder / "test"), "no test pictures", "note", 1, "test"),
    "nothing normal to test": (
        lambda folder: shutil.rmtree(folder / "test/good"),
        "nothing in test/good",
        "warning",
        1,
        "test/good",
    ),
    "empty kind": (
        lambda folder: (folder / "test/dent").mkdir(),
        "test folders without a picture",
        "error",
        1,
        "test/dent",
    ),
    "empty file": (
        lambda folder: (folder / TRAIN).write_bytes(b""),
        "unreadable pictures (it is empty)",
        "error",
        1,
        TRAIN,
    ),
    "cut short": (cut, "unreadable pictures (it is cut short)", "error", 1, "train/good/003.png"),
    "text": (
        lambda folder: (folder / TRAIN).write_text("x" * 99),
        "unreadable pictures (its content is not a picture)",
        "error",
        1,
        TRAIN,
    ),
    "other suffix": (
        lambda folder: (folder / "train/good/9.heic").touch(),
        "files that are passed over",
        "note",
        1,
        "train/good/9.heic",
    ),
    "other folder": (
        lambda folder: (folder / "train/bad").mkdir(),
        "folders beside train/good",
        "note",
        1,
        "train/bad",
    ),
    "constant": (picture(TRAIN, 120), "constant pictures", "warning", 1, TRAIN),
    "black": (picture("test/good/001.png", 0), "constant pictures", "warning", 1, "test/good/001.png"),
    "12 bits in 16": (twelve_bits, "nearly black 16-bit pictures", "warning", 40, "train/good/000.png"),
    "copy to train": (
        again(TRAIN, "train/good/copy.bmp"),
        "identical training pictures",
        "note",
        1,
        f"{TRAIN} = train/good/copy.bmp",
    ),
    "copy to test": (
        again(TRAIN, "test/good/9.png"),
        "identical pictures in train and test",
        "warning",
        1,
        f"{TRAIN} = test/good/9.png",
    ),
    "copy to a defect": (
        again("test/good/001.png", "test/crack/001.png"),
        "one test picture, two kinds",
        "warning",
        1,
        "test/crack/001.png",
    ),
    "jpeg in train": (jpeg("train/good/c.jpg"), "nearly identical training", "note", 1, f"{TRAIN} ≈ train/good/c.jpg"),
    "jpeg in test": (
        jpeg("test/good/9.jpg"),
        "nearly identical pictures in train and",
        "warning",
        1,
        f"{TRAIN} ≈ test/good/9.jpg",
    ),
    "no mask": (
        lambda folder: (folder / TRUTH).unlink(),
        "defective pictures without a mask",
        "error",
        1,
        "test/crack/002.png",
    ),
    "mask cut short": (lambda folder: (folder / TRUTH).write_bytes(b"\x89PNG"), "unreadable masks", "error", 1, TRUTH),
    "mask of another size": (mask(TRUTH, (8, 9)), "masks of another size", "error", 1, f"{TRUTH} (9×8, picture 64×64)"),
    "empty mask": (mask(TRUTH), "empty masks", "warning", 1, TRUTH),
    "grey mask": (grey_mask, "masks that are not black and white", "warning", 1, TRUTH),
    "mask of nothing": (
        again(TRUTH, "ground_truth/crack/7_mask.png"),
        "masks without a picture",
        "warning",
        1,
        "ground_truth/crack/7_mask.png",
    ),
    "masks of no kind": (
        moved("test/crack", "test/dent"),
        "masks without a picture",
        "warning",
        5,
        "ground_truth/crack/000_mask.png",
    ),
    "failed exposure": (brighter, "strange normal pictures", "warning", 1, TRAIN),
    "another thing": (another_thing, "strange normal pictures", "warning", 1, TRAIN),
    "a defect": (spot, "strange normal pictures", "warning", 1, TRAIN),
    "another proportion": (stretched, "several proportions", "note", 2, TRAIN),
    "grey among colour": (
        lambda folder: Image.open(folder / TRAIN).convert("L").save(folder / TRAIN),
        "grey pictures among others",
        "note",
        1,
        TRAIN,
    ),
}


@pytest.mark.parametrize(("plant", "what", "level", "count", "named"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(sound, plant, what, level, count, named):
    plant(sound)
    findings = examine_category(sound, workers=1)
    (found,) = (finding for finding in findings if what in finding.what)
    assert (found.level, len(found.cases)) == (level, count) and any(named in str(case) for case in found.cases)
    assert found.meaning and found.remedy
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


def test_what_is_in_order_is_not_complained_of(sound, category):
    assert examine_category(sound, workers=2) == []
    assert examine_category(category, workers=2) == []


def test_the_mask_of_an_unreadable_picture_is_no_fault(sound):
    (sound / "test/crack/002.png").write_bytes(b"")
    assert [finding.what for finding in examine_category(sound)] == ["unreadable pictures (it is empty)"]


def test_masks_that_nobody_wants_are_not_missed(sound):
    shutil.rmtree(sound / "ground_truth")
    assert examine_category(sound, masks=False) == []


def test_labels_soft_edges_and_masks_of_normal_pictures_are_in_order(sound):
    write_picture(sound / TRUTH, np.where(COLUMNS > 40, COLUMNS // 20, 0).astype(np.uint8))  # 0…3
    soft = Image.fromarray((np.hypot(ROWS - 32, COLUMNS - 32) < 20).astype(np.uint8) * 255).resize(
        (SIDE // 2,) * 2, Image.Resampling.BILINEAR
    )
    soft.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(sound / "ground_truth/crack/001_mask.png")
    mask("ground_truth/good/000_mask.png")(sound)
    assert examine_category(sound) == []


@pytest.mark.parametrize("turn", [False, True], ids=["in place", "at any angle"])
def test_alike_things_are_no_copies_and_none_is_strange(turn):
    """60 takes of one part, in almost one place and light, or at any angle."""
    rng, part = np.random.default_rng(2), np.full((160, 160), 200, np.uint8)
    part[50:110, 70:90], part[70:85, 40:120] = 60, 90
    takes = []
    for _ in range(60):
        angle, place = (
            (rng.uniform(0, 360) if turn else rng.normal(0, 1)),
            tuple(int(shift) for shift in rng.integers(-3, 4, 2)),
        )
        take = np.asarray(
            Image.fromarray(part).rotate(angle, Image.Resampling.BILINEAR, translate=place, fillcolor=200)
        ) + rng.normal(0, 5, part.shape)
        takes.append(similarity.thumbnail(Image.fromarray(take.clip(0, 255).astype(np.uint8))))
    thumbnails = np.stack(takes)
    assert list(similarity.pairs_within(similarity.Common(thumbnails).own(thumbnails))) == []
    assert similarity.standing_apart(thumbnails) == []


def test_sets_that_vary_much_have_no_strange_pictures():
    rng = np.random.default_rng(3)
    light = np.exp(rng.normal(3, 0.7, 200)).clip(0, 250)[:, None, None]
    assert similarity.standing_apart((light + rng.normal(0, 3, (200, SIDE, SIDE))).astype(np.float32)) == []


def check(run_main, folder, *arguments):
    return run_main("--check", f"data.data_dir={folder.parent}", f"data.category={folder.name}", *arguments)


def test_exit_codes_and_the_table(sound, run_main):
    code, out, err = check(run_main, sound)
    assert (code, err) == (0, "") and "nothing to complain of" in out and "train/good" in out and "64×64; RGB" in out
    again(TRAIN, "train/good/copy.png")(sound)
    assert check(run_main, sound)[0] == 0
    mask(TRUTH)(sound)
    code, out, _ = check(run_main, sound)
    assert code == 1 and "WARNING: empty masks" in out and TRUTH in out and "means:" in out and "remedy:" in out
    (sound / TRUTH).unlink()
    code, out, _ = check(run_main, sound)
    assert code == 2 and "ERROR: defective pictures without a mask" in out
    assert check(run_main, sound, "data.mask=False")[0] == 0


def test_nothing_but_data_has_to_be_configured(sound, capsys):
    config = Path(main.__file__).with_name("config.yaml")  # whose auto has no value for a category of one's own
    assert main.main(["--check", "--config", str(config), f"data.data_dir={sound.parent}", "data.category=disc"]) == 0
    assert "nothing to complain of" in capsys.readouterr().out


def test_all_categories_at_once(sound, category, run_main, tmp_path):
    mask(TRUTH)(sound)
    code, out, _ = run_main(
        "--check", f"data.data_dir={sound.parent}", "data.category=all", "--contact_sheet", str(tmp_path / "sheet.png")
    )
    assert code == 1 and "checked disc" in out and "checked nut" in out
    assert {path.name for path in tmp_path.glob("*.png")} == {"sheet_disc.png", "sheet_nut.png"}


def test_the_contact_sheet_shows_folders_and_findings(sound, run_main, tmp_path):
    another_thing(sound)
    assert check(run_main, sound, "--contact_sheet", str(tmp_path / "new" / "sheet.png"))[0] == 1
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 600  # ten to a row; three folders and a finding


@pytest.mark.parametrize("name", ["a = b.png", "a ≈ b.png", "img (1).png", "a; b.png"])
def test_any_name_is_on_the_contact_sheet(name, sound):
    """Names that hold the signs and brackets of the table too."""

    def rows() -> dict[str, list[str]]:
        looks = read_all_facts(sound, 1)
        return sheet_rows(looks, examine_category(sound, looks=looks))

    odd = f"train/good/{name}"
    again(TRAIN, odd)(sound)
    assert rows()["note: identical training pictures (1)"] == sorted([TRAIN, odd])
    another_thing(sound)
    (sound / TRAIN).replace(sound / odd)
    assert rows()["warning: strange normal pictures (1)"] == [odd]


def test_unreadable_files_of_one_problem_are_one_finding(sound):
    for name in ("a; b.png", "c can't be read: d.png"):
        (sound / "train/good" / name).write_text("x" * 99)
    Image.fromarray(np.full((SIDE, SIDE), 1e9, np.float32)).save(sound / "ground_truth/crack/002_mask.tiff")
    (sound / TRUTH).unlink()
    found = {finding.what: len(finding.cases) for finding in examine_category(sound)}
    assert found == {
        "unreadable pictures (its content is not a picture)": 2,
        "unreadable masks (its values go from 1e+09 to 1e+09, neither 0…1 nor 0…255 nor 0…65535)": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--check", "--train"), "--check and --train are two runs"),
        (("--check", "--contact_sheet", "x.jpg"), "it should name a .png file"),
        (("--train", "--contact_sheet", "x.png"), "which belongs to --check"),
        (("--check", "data.category=nuts"), "did you mean nut?"),
        (("--check", "data.categroy=nut"), "unknown key data.categroy"),
    ],
)
def test_mistakes_cost_one_line(run_main, arguments, words):
    code, out, err = run_main(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_training_warns_in_few_lines(sound, run_main):
    learnt = [path.name for path in sorted((sound / "train" / "good").iterdir())]
    decoded = [np.moveaxis(np.asarray(Image.open(sound / "train" / "good" / name)), 2, 0) for name in learnt]
    assert quick_check(sound, learnt, decoded) == [] == brief_findings([])
    picture(TRAIN, 0)(sound)
    shutil.copy(sound / "train/good/001.png", sound / "test/good/9.png")
    size = ("data.batch_size=8", "data.image_size=16", "model.attention_sizes=[8]", "model.epochs=1")
    code, out, _ = run_main("--train", f"data.data_dir={sound.parent}", "data.category=disc", *size)
    said = [line for line in out.splitlines() if line.startswith("warning: ") or "--check" in line]
    assert code == 0 and len(said) <= 4 and said[-1] == "python main.py --check says more"
    assert "warning: identical files in train and test, 1 (train/good/001.png = test/good/9.png)" in said


def test_each_copy_is_told_once():
    rng = np.random.default_rng(4)
    takes = rng.integers(0, 255, (50, SIDE, SIDE)).astype(np.float32)
    burst = takes[:1] + rng.normal(0, 3, (6, SIDE, SIDE)).astype(np.float32)
    common = similarity.Common(takes)
    assert list(similarity.pairs_between(common.own(takes), common.own(burst))) == [(0, number) for number in range(6)]
    pairs = list(similarity.pairs_within(common.own(np.concatenate([takes, burst]))))
    assert [second for _, second in pairs] == list(range(50, 56)) and all(
        first in (0, *range(50, 56)) for first, _ in pairs
    )
