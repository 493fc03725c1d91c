"""Each fault of a category is found, alone and among others; a category without faults has no findings."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture
from PIL import Image

import main
from data_tools import check
from data_tools.check import CheckRequest, examine_category, quick_check
from data_tools.check_output import brief_findings, read_catalogue, sheet_rows
from data_tools.image_facts import measure_depth, read_image_facts

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
TRAIN, TRUTH = "train/good/007.png", "ground_truth/crack/002_mask.png"


def draw_disc(rng: np.random.Generator) -> np.ndarray:
    """Draw a disc on a plain background, never quite at the same position or brightness."""
    down, across = 32 + rng.normal(0, 1.5, 2)
    inside = np.hypot(ROWS - down, COLUMNS - across) < 18
    grey = np.where(inside, 150, 70) + rng.normal(0, 4) + rng.normal(0, 6, inside.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def disc(tmp_path) -> Path:
    """<tmp>/data/disc: 40 normal pictures, 5 normal and 5 cracked ones to test, with masks."""
    rng, folder = np.random.default_rng(1), tmp_path / "data" / "disc"
    for number in range(40):
        write_picture(folder / "train" / "good" / f"{number:03}.png", draw_disc(rng))
    for number in range(5):
        write_picture(folder / "test" / "good" / f"{number:03}.png", draw_disc(rng))
        cracked, mask = draw_disc(rng), np.zeros((SIDE, SIDE), np.uint8)
        mask[20 + number : 40, 30:33] = 255
        cracked[mask > 0] = 230
        write_picture(folder / "test" / "crack" / f"{number:03}.png", cracked)
        write_picture(folder / "ground_truth" / "crack" / f"{number:03}_mask.png", mask)
    return folder


def findings_of(folder, masks=True, workers=2, depth=None):
    bits = depth or measure_depth(folder, workers)
    request = CheckRequest(masks=masks, bit_depth=bits, workers=workers)
    return examine_category(folder, read_image_facts(folder, workers, bits), request)


# Ways to damage the category, each a function of its folder


def keep_nine(folder):
    for path in sorted((folder / "train" / "good").iterdir())[9:]:
        path.unlink()


def truncate(folder):
    path = folder / TRAIN
    path.write_bytes(path.read_bytes()[:900])


def save_dark_sixteen_bit(folder):
    for path in (folder / "train" / "good").iterdir():
        write_picture(path, np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16)


def save_bright_test(folder):
    save_dark_sixteen_bit(folder)
    write_picture(folder / BLACK, np.full((SIDE, SIDE), 9, np.uint16) + 65526 * (ROWS > 9).astype(np.uint16))


def stretch_all(factor):
    def stretch_pictures(folder):
        for path in folder.rglob("*.png"):
            Image.open(path).resize((SIDE, round(factor * SIDE))).save(path)

    return stretch_pictures


def brighten(folder):
    Image.open(folder / TRAIN).point(lambda value: min(255, 2 * value)).save(folder / TRAIN)


def draw_stripes(folder):
    stripes = np.repeat((COLUMNS // 4 % 2 * 120 + 60)[..., None], 3, axis=2).astype(np.uint8)
    write_picture(folder / TRAIN, stripes)


def draw_spot(folder):
    pixels = np.array(Image.open(folder / TRAIN))
    pixels[26:36, 26:36] = 10
    write_picture(folder / TRAIN, pixels)


def stretch(folder):
    Image.open(folder / TRAIN).resize((SIDE, 2 * SIDE)).save(folder / TRAIN)


def save_grey(folder):
    Image.open(folder / TRAIN).convert("L").save(folder / TRAIN)


def draw_grey_mask(folder):
    write_picture(folder / TRUTH, np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)).astype(np.uint8))


def copy(source: str, target: str, **options):
    return lambda folder: Image.open(folder / source).save(folder / target, **options)


def copy_as_jpeg(target: str):
    return copy(TRAIN, target, quality=98, subsampling=0)


def remove(name: str):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def make_folder(name: str):
    return lambda folder: (folder / name).mkdir()


def rename(source: str, target: str):
    return lambda folder: (folder / source).rename(folder / target)


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def invert_masks(folder):
    for path in (folder / "ground_truth" / "crack").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def link_to_nothing(folder):
    (folder / "train" / "good" / "lost.png").symlink_to("nowhere.png")


def fill(name: str, value: int, shape=(SIDE, SIDE)):
    return lambda folder: write_picture(folder / name, np.full(shape, value, np.uint8))


def darken(folder):
    Image.open(folder / TRAIN).point(lambda value: value // 16).save(folder / TRAIN)


BLACK = "test/good/001.png"
COPY, JPEG = "train/good/copy.bmp", "train/good/c.jpg"
FAULTS = {  # how it is made; the finding, its level, its number of cases, and a file or pair that it names
    "no training pictures": (remove("train"), "no training pictures", "error", 1, "train/good"),
    "few training pictures": (keep_nine, "only 9 training pictures", "warning", 1, "train/good"),
    "no test": (remove("test"), "no test pictures", "note", 1, "test"),
    "no normal test": (remove("test/good"), "no pictures in test/good", "warning", 1, "test/good"),
    "no defects": (remove("test/crack"), "no pictures in test/<defect>", "warning", 1, "test/<defect>"),
    "empty kind": (make_folder("test/dent"), "test folders without a picture", "error", 1, "test/dent"),
    "empty file": (write(TRAIN, b""), "unreadable pictures (it is empty)", "error", 1, TRAIN),
    "truncated file": (truncate, "unreadable pictures (it is cut short)", "error", 1, TRAIN),
    "text": (write(TRAIN, b"x" * 99), "unreadable pictures (its content is not a picture)", "error", 1, TRAIN),
    "other suffix": (write("train/good/9.heic", b""), "ignored files", "note", 1, "train/good/9.heic"),
    "other folder": (make_folder("train/bad"), "folders beside train/good", "note", 1, "train/bad"),
    "lost link": (link_to_nothing, "links that lead nowhere", "warning", 1, "train/good/lost.png"),
    "constant": (fill(TRAIN, 120, (SIDE, SIDE, 3)), "constant pictures", "warning", 1, TRAIN),
    "black": (fill(BLACK, 0, (SIDE, SIDE, 3)), "constant pictures", "warning", 1, BLACK),
    "nearly black": (darken, "nearly black pictures", "warning", 1, TRAIN),
    "12 bits in 16": (save_dark_sixteen_bit, "files of 16 bits with 12 bits", "note", 1, "train/good ("),
    "brighter than white": (
        save_bright_test,
        "pictures brighter than white",
        "warning",
        1,
        "test/good/001.png (65535)",
    ),
    "a strip": (stretch_all(24), "pictures that are squashed to squares", "warning", 50, "64×1536, 24:1"),
    "3 to 2": (stretch_all(1.5), "pictures that are squashed to squares", "note", 50, "64×96, 1.5:1"),
    "copy in train": (copy(TRAIN, COPY), "identical training pictures", "note", 1, f"{TRAIN} = {COPY}"),
    "copy in test": (
        copy(TRAIN, "test/good/9.png"),
        "identical pictures in train and test",
        *("warning", 1, f"{TRAIN} = test/good/9.png"),
    ),
    "normal copy in a defect": (
        copy(BLACK, "test/crack/001.png"),
        "identical test pictures with different labels",
        *("warning", 1, "test/crack/001.png"),
    ),
    "jpeg in train": (copy_as_jpeg(JPEG), "nearly identical training pictures", "note", 1, f"{TRAIN} ≈ {JPEG}"),
    "jpeg in test": (
        copy_as_jpeg("test/good/9.jpg"),
        "nearly identical pictures in train and test",
        *("warning", 1, f"{TRAIN} ≈ test/good/9.jpg"),
    ),
    "no mask": (remove(TRUTH), "defective pictures without a mask", "error", 1, "test/crack/002.png"),
    "one mask for two": (
        copy("test/crack/002.png", "test/crack/002.bmp"),
        "masks of several pictures",
        *("error", 1, f"test/crack/002.bmp, test/crack/002.png, {TRUTH}"),
    ),
    "truncated mask": (write(TRUTH, b"\x89PNG"), "unreadable masks", "error", 1, TRUTH),
    "mask of another size": (
        fill(TRUTH, 255, (8, 9)),
        "masks of another size than their picture",
        *("error", 1, f"{TRUTH} (9×8, picture 64×64)"),
    ),
    "empty mask": (fill(TRUTH, 0), "empty masks", "warning", 1, TRUTH),
    "grey mask": (draw_grey_mask, "masks that are not black and white", "warning", 1, TRUTH),
    "inverted masks": (
        invert_masks,
        "masks of crack that cover most of their pictures",
        *("warning", 5, f"{TRUTH} (99%)"),
    ),
    "mask of no picture": (
        copy(TRUTH, "ground_truth/crack/7_mask.png"),
        "masks without a picture",
        *("warning", 1, "ground_truth/crack/7_mask.png"),
    ),
    "masks of no kind": (
        rename("test/crack", "test/dent"),
        "masks without a picture",
        *("warning", 5, "ground_truth/crack/000_mask.png"),
    ),
    "overexposed": (brighten, "unusual training pictures", "warning", 1, TRAIN),
    "another object": (draw_stripes, "unusual training pictures", "warning", 1, TRAIN),
    "a defect": (draw_spot, "unusual training pictures", "warning", 1, TRAIN),
    "another aspect ratio": (stretch, "training pictures of different aspect ratios", "note", 2, TRAIN),
    "grey among colour": (save_grey, "grey pictures among others", "note", 1, TRAIN),
}


def test_pictures_and_masks_in_subfolders_are_checked(disc):
    for part in ("train/good", "test/good", "test/crack", "ground_truth/crack"):
        (disc / part / "day2").mkdir()
        for path in sorted(file for file in (disc / part).iterdir() if file.is_file())[2:]:
            path.rename(path.parent / "day2" / path.name)
    assert [finding.name for finding in findings_of(disc)] == []
    assert len(read_image_facts(disc, 1)) == 50
    fill(f"{Path(TRUTH).parent}/day2/002_mask.png", 0)(disc)
    (fault,) = findings_of(disc)
    assert fault.name == "empty masks" and str(fault.cases[0]) == "ground_truth/crack/day2/002_mask.png"


def test_pictures_that_stay_dark_at_a_given_depth_are_a_warning(disc):
    save_dark_sixteen_bit(disc)
    assert "nearly black 16-bit pictures" in {finding.name for finding in findings_of(disc, depth=16)}
    assert "nearly black 16-bit pictures" not in {finding.name for finding in findings_of(disc)}


@pytest.mark.parametrize(("damage", "name", "level", "count", "case"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(disc, damage, name, level, count, case):
    damage(disc)
    findings = findings_of(disc, workers=1)
    (fault,) = (finding for finding in findings if name in finding.name)
    assert (fault.level, len(fault.cases)) == (level, count) and any(case in str(named) for named in fault.cases)
    assert fault.meaning and fault.remedy and not set("{}") & {*fault.name, *fault.meaning, *fault.remedy}
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


def test_the_catalogue_holds_no_unused_finding():
    code = Path(check.__file__).read_text(encoding="utf-8")
    assert [name for name in read_catalogue() if f'"{name}"' not in code] == []


def test_a_category_without_faults_has_no_findings(disc, category):
    assert findings_of(disc) == [] == findings_of(category)


def test_an_unreadable_picture_does_not_make_its_mask_a_finding(disc):
    (disc / "test/crack/002.png").write_bytes(b"")
    assert [finding.name for finding in findings_of(disc)] == ["unreadable pictures (it is empty)"]


def test_without_ground_truth_no_mask_is_missing(disc):
    shutil.rmtree(disc / "ground_truth")
    assert findings_of(disc, masks=False) == []


def test_labels_soft_edges_and_masks_of_normal_pictures_are_no_faults(disc):
    write_picture(disc / TRUTH, np.where(COLUMNS > 40, COLUMNS // 20, 0).astype(np.uint8))  # 0…3
    soft = Image.fromarray((np.hypot(ROWS - 32, COLUMNS - 32) < 20).astype(np.uint8) * 255).resize(
        (SIDE // 2,) * 2, Image.Resampling.BILINEAR
    )
    soft.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(disc / "ground_truth/crack/001_mask.png")
    fill("ground_truth/good/000_mask.png", 0)(disc)
    assert findings_of(disc) == []


def run_check(run_main, folder, *arguments):
    return run_main("--check", f"data.data_dir={folder.parent}", f"data.category={folder.name}", *arguments)


def test_the_exit_code_follows_the_worst_finding_of_the_table(disc, run_main):
    code, out, err = run_check(run_main, disc)
    assert (code, err) == (0, "") and "no problems found" in out and "train/good" in out and "64×64; RGB" in out
    copy(TRAIN, "train/good/copy.png")(disc)
    assert run_check(run_main, disc)[0] == 0
    fill(TRUTH, 0)(disc)
    code, out, _ = run_check(run_main, disc)
    assert code == 1 and "WARNING: empty masks" in out and TRUTH in out and "means:" in out and "remedy:" in out
    (disc / TRUTH).unlink()
    code, out, _ = run_check(run_main, disc)
    assert code == 2 and "ERROR: defective pictures without a mask" in out
    assert run_check(run_main, disc, "data.mask=False")[0] == 0


def test_a_check_needs_no_settings_but_data(disc, capsys):
    config = Path(main.__file__).with_name("config.yaml")  # its `auto` has no published value for this category
    assert main.main(["--check", "--config", str(config), f"data.data_dir={disc.parent}", "data.category=disc"]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_all_categories_at_once(disc, category, run_main, tmp_path):
    fill(TRUTH, 0)(disc)
    code, out, _ = run_main(
        "--check", f"data.data_dir={disc.parent}", "data.category=all", "--contact_sheet", str(tmp_path / "sheet.png")
    )
    assert code == 1 and "checked disc" in out and "checked nut" in out
    assert {path.name for path in tmp_path.glob("*.png")} == {"sheet_disc.png", "sheet_nut.png"}


def test_the_contact_sheet_shows_folders_and_findings(disc, run_main, tmp_path):
    draw_stripes(disc)
    assert run_check(run_main, disc, "--contact_sheet", str(tmp_path / "new" / "sheet.png"))[0] == 1
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 600  # ten to a row; three folders and a finding


@pytest.mark.parametrize("name", ["a = b.png", "a ≈ b.png", "img (1).png", "a; b.png"])
def test_any_name_is_on_the_contact_sheet(name, disc):
    """Names may contain the signs and brackets of the table."""

    def rows() -> dict[str, list[str]]:
        pictures = read_image_facts(disc, 1)
        return sheet_rows(pictures, examine_category(disc, pictures, CheckRequest(workers=1)))

    odd = f"train/good/{name}"
    copy(TRAIN, odd)(disc)
    assert rows()["note: identical training pictures (1)"] == sorted([TRAIN, odd])
    draw_stripes(disc)
    (disc / TRAIN).replace(disc / odd)
    assert rows()["warning: unusual training pictures (1)"] == [odd]


def test_unreadable_files_of_one_problem_are_one_finding(disc):
    for name in ("a; b.png", "c can't be read: d.png"):
        (disc / "train/good" / name).write_text("x" * 99)
    Image.fromarray(np.full((SIDE, SIDE), 1e9, np.float32)).save(disc / "ground_truth/crack/002_mask.tiff")
    (disc / TRUTH).unlink()
    counts = {finding.name: len(finding.cases) for finding in findings_of(disc)}
    assert counts == {
        "unreadable pictures (its content is not a picture)": 2,
        "unreadable masks (its values go from 1e+09 to 1e+09, neither 0…1 nor 0…255 nor 0…65535)": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--check", "--train"), "--check and --train are two runs"),
        (("--check", "--contact_sheet", "x.jpg"), "it should name a .png file"),
        (("--train", "--contact_sheet", "x.png"), "which belongs to --check"),
        (("--check", "data.category=nuts"), "did you mean nut?"),
        (("--check", "data.categroy=nut"), "unknown key data.categroy"),
    ],
)
def test_a_wrong_request_ends_with_one_error_line(run_main, arguments, message):
    code, out, err = run_main(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_training_warns_in_a_few_lines(disc, run_main):
    names = [path.name for path in sorted((disc / "train" / "good").iterdir())]
    decoded = [np.moveaxis(np.asarray(Image.open(disc / "train" / "good" / name)), 2, 0) for name in names]
    assert quick_check(disc, names, decoded) == [] == brief_findings([])
    fill(TRAIN, 0, (SIDE, SIDE, 3))(disc)
    shutil.copy(disc / "train/good/001.png", disc / "test/good/9.png")
    size = ("data.batch_size=8", "data.image_size=16", "model.attention_sizes=[8]", "model.epochs=1")
    code, out, _ = run_main("--train", f"data.data_dir={disc.parent}", "data.category=disc", *size)
    lines = [line for line in out.splitlines() if line.startswith("warning: ") or "--check" in line]
    assert code == 0 and len(lines) <= 4 and lines[-1] == "python main.py --check shows more"
    assert "warning: identical files in train and test, 1 (train/good/001.png = test/good/9.png)" in lines
