"""Downloads of published data sets become categories, and the printed command trains on them: runs through main.py."""

import json
import os
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import originals
import pytest
from originals import QUICK, Maker, count_pictures, read_pixels, tree
from PIL import Image

from config.load import load_settings
from data_tools import archives, category_writer, published_sets
from data_tools.category_writer import NOTE
from dataset import held_out_count
from storage.safe_names import named_path

SETS = {  # builder → flag, folder of data, categories, and (train, test good, test defective) of each
    "visa": ("visa", "VisA", ["candle", "pcb1"], (6, 2, 2)),
    "mvtec": ("mvtec", "MVTec", ["bottle"], (6, 2, 2)),
    "loco": ("mvtec", "MVTec", ["juice_bottle"], (6, 2, 4)),
    "mvtec2": ("mvtec2", "MVTecAD2", ["can"], (6, 2, 2)),
    "mpdd": ("mpdd", "MPDD", ["connector", "tubes"], (6, 2, 2)),
    "real_iad": ("real_iad", "RealIAD", ["audiojack", "toy"], (6, 3, 2)),
    "mtd": ("mtd", "MTD", ["magnetic_tile"], (8, 2, 5)),
    "btad": ("btad", "BTAD", ["01", "02", "03"], (6, 2, 2)),
    "ksdd": ("ksdd", "KSDD", ["commutator"], (11, 2, 2)),
    "ksdd2": ("ksdd", "KSDD", ["surface"], (7, 6, 2)),
}
SHIPPED = Path(__file__).parents[2] / "config.yaml"


@pytest.fixture
def original(tmp_path):
    """original("visa") → the folder of a small original, which must not change."""
    contents = {}

    def make(name):
        root = tmp_path / "original"
        getattr(originals, name)(Maker(root))
        contents[root] = tree(root)
        return root

    yield make
    for root, content in contents.items():
        assert tree(root) == content


@pytest.mark.parametrize("name", SETS)
def test_an_original_is_prepared_and_its_next_command_trains_and_detects(name, original, run_main, tmp_path):
    flag, folder, categories, expected = SETS[name]
    code, out, err = run_main(f"--prepare_{flag}", str(original(name)), *QUICK)
    assert code == 0, err
    prepared = tmp_path / folder
    assert sorted(path.name for path in prepared.iterdir()) == categories
    for category in categories:
        assert count_pictures(prepared / category) == expected
        note = json.loads((prepared / category / NOTE).read_text())
        assert note["finished"] and note["licence"] and note["source"].startswith("http")
        for picture in (path for path in (prepared / category).glob("test/*/*") if path.parent.name != "good"):
            (mask,) = (prepared / category / "ground_truth" / picture.parent.name).glob(f"{picture.stem}_mask.*")
            assert set(np.unique(read_pixels(mask))) == {0, 255}
    command = shlex.split(out.splitlines()[-1].removeprefix("next: python main.py "))
    code, out, err = run_main(*command)
    assert code == 0, err
    assert (
        f"{sum(expected[1:])} pictures ({expected[1]} normal, {expected[2]} defective)" in out and "pixel AUROC" in out
    )
    assert f"data_dir={prepared}" in out and f"category={categories[0]}" in out


def test_labels_become_black_and_white_and_pictures_stay_as_they_are(original, run_main, tmp_path):
    root = original("visa")
    run_main("--prepare_visa", str(root))
    prepared = tmp_path / "VisA" / "pcb1"
    np.testing.assert_array_equal(
        read_pixels(prepared / "ground_truth/bad/001_mask.png"),
        255 * (read_pixels(root / "pcb1/Data/Masks/Anomaly/001.png") == 2),
    )
    assert (prepared / "train/good/0003.JPG").samefile(root / "pcb1/Data/Images/Normal/0003.JPG")
    assert sorted(path.name for path in (prepared / "test/good").iterdir()) == ["0006.JPG", "0007.JPG"]


def test_defective_training_pictures_of_a_two_class_split_are_left_out(original, run_main, tmp_path):
    root = str(original("visa"))
    _, out, _ = run_main("--prepare_visa", root, "--split", "2cls_fewshot")
    assert (
        count_pictures(tmp_path / "VisA_2cls_fewshot" / "candle") == (6, 2, 1)
        and "2 defective training pictures of 2cls_fewshot.csv are left out" in out
    )
    code, _, err = run_main("--prepare_visa", root, "--split", "2cls")
    assert code == 2 and "no split '2cls'" in err and "1cls, 2cls_fewshot, 2cls_highshot" in err


def test_counts_of_another_split_are_not_compared_with_the_published_ones(original, run_main):
    root = str(original("visa"))
    _, out, _ = run_main("--prepare_visa", root, "--split", "2cls_fewshot")
    assert "warning" not in out
    _, out, _ = run_main("--prepare_visa", root)
    assert "warning: pcb1 has 6 training pictures, the published VisA 904; the download may be incomplete" in out


def test_categories_that_the_download_does_not_hold_are_left_out_and_named(original, run_main, tmp_path):
    part = shutil.copytree(original("visa"), tmp_path / "part", ignore=shutil.ignore_patterns("candle"))
    code, out, err = run_main("--prepare_visa", str(part))
    assert code == 0, err
    assert f"1 of 2 categories are not in {part} and are left out: candle" in out
    assert [path.name for path in (tmp_path / "VisA").iterdir()] == ["pcb1"]
    code, _, err = run_main("--prepare_visa", str(part), "data.category=candle")
    assert code == 2 and f"no folder {part / 'candle'}; the download is incomplete" in err
    (part / "pcb1/Data/Images/Normal/0001.JPG").unlink()
    code, _, err = run_main("--prepare_visa", str(part), "--output", str(tmp_path / "b"))
    assert code == 2 and "0001.JPG, which" in err


@pytest.mark.parametrize(
    ("name", "wanted", "others"),
    [("visa", "pcb1", "candle or pcb1"), ("btad", "02", "01 or 02 or 03"), ("loco", "juice_bottle", "juice_bottle")],
)
def test_only_the_wanted_categories_are_prepared(name, wanted, others, original, run_main, tmp_path):
    command, output = [f"--prepare_{SETS[name][0]}", str(original(name))], ["--output", str(tmp_path / "out")]
    code, out, err = run_main(*command, *output, f"data.category=[{wanted!r}]")
    assert code == 0, err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [wanted] and f"data.category={wanted}" in out
    code, _, err = run_main(*command, *output, "data.category=none")
    assert code == 2 and "no category 'none' in" in err and f"change data.category to {others}" in err


def test_more_pictures_than_published_are_not_an_incomplete_download(original, run_main, monkeypatch):
    counts = {("MVTec AD", "bottle"): {"normal": 7, "training": 6, "defective test": 2}}
    monkeypatch.setattr(published_sets, "published_counts", lambda: counts)
    _, out, _ = run_main("--prepare_mvtec", str(original("mvtec")))
    assert "bottle has 8 normal pictures, the published MVTec AD 7; it is another version, or has more files" in out
    assert out.count("warning") == 1


def test_subfolders_of_a_kind_stay_subfolders(original, run_main, tmp_path):
    nested = shutil.copytree(original("mvtec"), tmp_path / "nested")
    for part, name in (("train/good", "000.png"), ("test/broken_large", "001.png")):
        (nested / "bottle" / part / "day2").mkdir()
        (nested / "bottle" / part / name).rename(nested / "bottle" / part / "day2" / name)
    masks = nested / "bottle" / "ground_truth" / "broken_large"
    (masks / "day2").mkdir()
    (masks / "001_mask.png").rename(masks / "day2" / "001_mask.png")
    _, out, _ = run_main("--prepare_mvtec", str(nested))
    assert "6 normal pictures to train on, 2 normal and 2 defective to test" in out and "no mask" not in out
    assert (tmp_path / "MVTec/bottle/ground_truth/broken_large/day2/001_mask.png").exists()


def test_several_masks_become_one_and_validation_stays_separate(original, run_main, tmp_path):
    run_main("--prepare_mvtec", str(original("loco")))
    prepared = tmp_path / "MVTec" / "juice_bottle"
    mask = read_pixels(prepared / "ground_truth/logical_anomalies/000_mask.png")
    assert mask[10:22, 10:22].all() and mask[30:42, 30:42].all() and np.count_nonzero(mask) == 2 * 12 * 12
    assert len(list((prepared / "validation/good").iterdir())) == 2
    assert "MVTec LOCO AD" in (prepared / NOTE).read_text()


def test_mvtec_ad_2_keeps_its_splits_and_takes_thresholds_from_validation(original, run_main, tmp_path):
    _, out, _ = run_main("--prepare_mvtec2", str(original("mvtec2")))
    files = set(tree(tmp_path / "MVTecAD2" / "can"))
    assert {"validation/good/002_regular.png", "test_private/001_regular.png"} <= files
    assert {"test_private_mixed/002_mixed.png", "ground_truth/bad/001_overexposed_mask.png"} <= files
    assert "calibration.folder=validation" in shlex.split(out.splitlines()[-1])
    code, _, err = run_main("--prepare_mvtec", str(tmp_path / "original"))
    assert code == 2 and "prepare MVTec AD 2 with --prepare_mvtec2" in err


def test_real_iad_takes_the_largest_pictures_and_the_table_of_all_views(original, run_main, tmp_path):
    root = original("real_iad")
    assert run_main("--prepare_real_iad", str(root))[0] == 0
    prepared = tmp_path / "RealIAD" / "toy"
    picture = "OK/S0000/toy_0000_OK_C1_2023.jpg"
    assert (prepared / "train/good" / Path(picture).name).samefile(root / "realiad_1024/toy" / picture)
    assert (prepared / "test/good/toy_0001_NG_BX_C2_2023.jpg").exists()
    assert sorted(path.name for path in (prepared / "test").iterdir()) == ["bx", "good"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"OK/S0000/', '"../OK/'), "which is not a path in its own folder"),
        (("toy_0001_OK", "toy_0009_OK"), "the download is incomplete"),
        (('"anomaly_class": "BX"', '"anomaly_class": "../x"'), "which is not a path in its own folder"),
        (('"train"', '"learn"'), "can't be read as a table of Real-IAD: 'train'"),
        (("{", "["), "can't be read as a table of Real-IAD"),
    ],
)
def test_a_damaged_table_of_real_iad_is_refused(change, message, original, run_main, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(original("real_iad"), root)
    table = root / "realiad_jsons" / "realiad_jsons" / "toy.json"
    table.write_text(table.read_text().replace(*change))
    code, _, err = run_main("--prepare_real_iad", str(root))
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not tree(tmp_path / "RealIAD")


def test_exposures_of_one_tile_are_on_one_side(original, run_main, tmp_path):
    root = tmp_path / "more"
    shutil.copytree(original("mtd"), root)
    free = root / "MT_Free" / "Imgs"
    for number in range(10):  # brighter, and saved again
        Image.open(free / f"exp2_num_{number}.jpg").point(lambda value: min(255, value * 1.05 + 3)).save(
            free / f"exp6_num_{number}.jpg", quality=70
        )
    run_main("--prepare_mtd", str(root), "model.seed=3")
    prepared = tmp_path / "MTD" / "magnetic_tile"
    sides = [
        {path.stem.rpartition("_")[2] for path in (prepared / side / "good").iterdir()} for side in ("train", "test")
    ]
    assert count_pictures(prepared)[:2] == (16, 4) and not sides[0] & sides[1]


def test_normal_parts_of_one_item_are_on_one_side(original, run_main, tmp_path):
    run_main("--prepare_ksdd", str(original("ksdd")))
    prepared = tmp_path / "KSDD" / "commutator"
    train, test = ({path.name[:5] for path in (prepared / side / "good").iterdir()} for side in ("train", "test"))
    assert not train & test and sorted(path.name for path in (prepared / "test/bad").iterdir()) == [
        "kos01_Part2.jpg",
        "kos02_Part2.jpg",
    ]


def test_other_counts_than_the_published_ones_are_a_warning(original, run_main):
    _, out, _ = run_main("--prepare_mvtec", str(original("mvtec")))
    assert "warning: bottle has 6 training pictures, the published MVTec AD 209" in out


def test_missing_masks_are_a_warning_and_the_next_command_sets_mask_to_false(original, run_main, tmp_path):
    root = original("mvtec")
    without = tmp_path / "without"
    shutil.copytree(root, without, ignore=shutil.ignore_patterns("ground_truth"))
    _, out, _ = run_main("--prepare_mvtec", str(without))
    assert "2 defective pictures of bottle have no mask, test/broken_large/000.png is the first" in out
    assert "data.mask=False" in shlex.split(out.splitlines()[-1])


@pytest.mark.parametrize(("form", "name"), [("tar", "mvtec"), ("xztar", "visa"), ("zip", "mtd"), ("gztar", "ksdd")])
def test_an_archive_gives_the_same_files_as_its_folder(form, name, original, run_main, tmp_path):
    root, flag = original(name), f"--prepare_{name}"
    packed = shutil.make_archive(str(tmp_path / "download"), form, root)
    code, _, err = run_main(flag, packed, "--output", str(tmp_path / "a"))
    assert code == 0, err
    run_main(flag, str(root), "--output", str(tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_category_packed_without_its_folder_is_named_after_the_archive(original, run_main, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "screw"), "gztar", original("mvtec") / "bottle")
    run_main("--prepare_mvtec", packed, "--output", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["screw"]


@pytest.mark.parametrize("allowed", [0, 3, 9])
def test_a_stopped_preparation_continues_to_the_same_result(allowed, original, run_main, tmp_path, monkeypatch):
    """The run stops while unpacking, then while writing; kill -9 leaves a truncated temporary file."""
    packed = shutil.make_archive(str(tmp_path / "download"), "tar", original("loco"))
    run_main("--prepare_mvtec", packed, "--output", str(tmp_path / "unbroken"))
    broken = tmp_path / "broken"
    for module, name in ((archives, "member_content"), (category_writer, "link_or_copy")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(getattr(module, name), allowed))
            code, _, err = run_main("--prepare_mvtec", packed, "--output", str(broken))
            assert code == 130 and err.startswith("stopped"), err
    (broken / "juice_bottle/test/logical_anomalies").mkdir(parents=True, exist_ok=True)
    (broken / "juice_bottle/ground_truth/logical_anomalies").mkdir(parents=True, exist_ok=True)
    (broken / "juice_bottle/ground_truth/logical_anomalies/.000_mask.png.part").write_bytes(b"half")
    (broken / "juice_bottle/ground_truth/logical_anomalies/000_mask.png").unlink(missing_ok=True)
    code, _, err = run_main("--prepare_mvtec", packed, "--output", str(broken))
    assert code == 0, err
    assert tree(broken) == tree(tmp_path / "unbroken")


def stopping(work, allowed):
    """Return `work` that presses Ctrl-C after `allowed` calls."""
    left = allowed

    def call(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return work(*arguments)

    return call


def test_preparing_again_restores_missing_files_and_changes_nothing_else(original, run_main, tmp_path):
    root = str(original("mvtec"))
    run_main("--prepare_mvtec", root)
    before = tree(tmp_path / "MVTec")
    (tmp_path / "MVTec/bottle/train/good/003.png").unlink()
    assert run_main("--prepare_mvtec", root)[0] == 0
    assert tree(tmp_path / "MVTec") == before


def test_pictures_are_copied_where_links_are_not_allowed(original, run_main, tmp_path, monkeypatch):
    root = original("mvtec")

    def across(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across)
    assert run_main("--prepare_mvtec", str(root))[0] == 0
    copy, source = tmp_path / "MVTec/bottle/train/good/000.png", root / "bottle/train/good/000.png"
    assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)


FIRST = "candle/Data/Images/Normal/0001.JPG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((FIRST, "../secret.JPG"), "names '../secret.JPG', which is not a path in its own folder"),
        ((FIRST, "/etc/passwd.JPG"), "names '/etc/passwd.JPG', which is not a path in its own folder"),
        ((FIRST, "C:\\\\secret.JPG"), "which is not a path in its own folder"),
        ((FIRST, "candle/link.JPG"), "a link that leaves"),
        ((FIRST, "candle/gone.JPG"), "the download is incomplete"),
        ((FIRST, "split_csv/1cls.csv"), "which is no picture"),
        ((FIRST, "candle/Data/Images/Normal/0002.JPG"), "would both be candle/train/good/0002.JPG"),
        (("\ncandle,", "\n../candle,"), "which is not a path in its own folder"),
        (("\ncandle,", "\na/b,"), "object is 'a/b'"),
        ((",anomaly,", ",odd,"), "label are 'test' and 'odd'"),
        (("object,", "thing,"), "has no column object"),
    ],
)
def test_a_damaged_table_of_visa_is_refused(change, message, original, run_main, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(original("visa"), root)
    table = root / "split_csv" / "1cls.csv"
    text = table.read_bytes().decode()
    assert change[0] in text.replace("\r", "")
    table.write_text(text.replace("\r", "").replace(change[0], change[1].replace("\\\\", "\\")))
    secret = tmp_path / "secret.JPG"
    shutil.copy(root / FIRST, secret)
    (root / "candle" / "link.JPG").symlink_to(secret)
    code, _, err = run_main("--prepare_visa", str(root))
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not tree(tmp_path / "VisA")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prepare_visa", "gone"), "no folder or archive at"),
        (("--prepare_visa", "empty"), "no split_csv, as VisA has"),
        (("--prepare_mvtec", "empty"), "no category with train/good"),
        (("--prepare_mtd", "empty"), "no MT_Free"),
        (("--prepare_mvtec2", "empty"), "no category with test_public"),
        (("--prepare_mpdd", "empty"), "no category with train/good, as MPDD has"),
        (("--prepare_real_iad", "empty"), "no realiad_jsons with a JSON file for each category"),
        (("--prepare_btad", "empty"), "no product with train/ok"),
        (("--prepare_ksdd", "empty"), "no kos01 with Part0_label.bmp"),
        (("--prepare_folder", "empty"), "no pictures in"),
        (("--prepare_folder", "empty", "data.category=../x"), "not a path in its own folder"),
        (("--prepare_visa", ""), "--prepare_visa: it is empty"),
        (("--prepare_visa", "empty", "--train"), "--prepare_visa and --train are two runs"),
        (("--prepare_visa", "empty", "--prepare_mtd", "empty"), "--prepare_visa and --prepare_mtd are two runs"),
        (("--prepare_visa", "empty", "--defects", "empty"), "which belongs to --prepare_folder"),
        (("--prepare_folder", "empty", "--masks", "empty"), "which belongs to --defects"),
        (("--prepare_mtd", "empty", "--split", "1cls"), "which belongs to --prepare_visa"),
        (("--prepare_mtd", "empty", "--output", "taken/out"), "can't make the folder"),
    ],
)
def test_a_wrong_request_ends_with_one_error_line(flags, message, run_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").touch()
    code, _, err = run_main(*flags)
    assert code == 2 and message in err and err.count("\n") == 1, err


def test_folders_with_other_files_are_left_alone(original, run_main, tmp_path):
    root = original("mvtec")
    mine = tmp_path / "MVTec" / "bottle"
    mine.mkdir(parents=True)
    (mine / "letter.txt").write_text("dear")
    code, _, err = run_main("--prepare_mvtec", str(root))
    assert code == 2 and "holds files that no preparation wrote; choose another folder with --output" in err
    code, _, err = run_main("--prepare_mvtec", str(root), "--output", str(root))
    assert code == 2 and "holds files that no preparation wrote" in err
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_another_seed_is_another_preparation(original, run_main):
    root = str(original("mtd"))
    run_main("--prepare_mtd", root, "model.seed=1")
    code, _, err = run_main("--prepare_mtd", root, "model.seed=2")
    assert code == 2 and "with another split or seed; remove it" in err


def test_a_hostile_archive_leaves_no_files(run_main, tmp_path):
    packed = tmp_path / "download.tar"
    with tarfile.open(packed, "w") as archive:
        archive.addfile(tarfile.TarInfo("bottle/train/good/000.png"))
        archive.addfile(tarfile.TarInfo("../escaped.png"))
    code, _, err = run_main("--prepare_mvtec", str(packed))
    assert code == 2 and "names '../escaped.png'" in err and err.count("\n") == 1
    assert not tree(tmp_path / "MVTec") and not list(tmp_path.glob("escaped*"))


def test_the_next_command_lowers_the_batch_size_to_the_number_of_pictures(original, run_main):
    _, out, _ = run_main("--prepare_mvtec", str(original("mvtec")), "data.batch_size=16", "model.epochs=1")
    assert {"data.batch_size=5", "model.epochs=1"} <= set(shlex.split(out.splitlines()[-1]))
    assert held_out_count(500, share=0.2, most=100) == 100


def test_the_shipped_configuration_works_with_its_preset(original, run_main, tmp_path):
    source = str(original("mvtec"))
    code, out, _ = run_main(
        "--prepare_mvtec", source, "--output", str(tmp_path / "out"), "preset=laptop", config=SHIPPED
    )
    assert code == 0 and "preset=laptop" in shlex.split(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("settings", "preset"),
    [
        ((), True),
        (("model.w=3",), True),
        (("model.w=3", "model.epochs=4"), False),
        (("model.w=3", "budget_minutes=10"), False),
        (("model.w=auto", "model.epochs=4"), True),
        (("preset=published",), True),
        (("preset=laptop",), True),
        (("model.w=3", "model.epochs=4", "model.load_chp=auto"), True),
    ],
)
def test_the_next_command_has_the_preset_where_a_key_has_no_published_value(settings, preset, original, run_main):
    """The printed settings are enough to build the configuration."""
    _, out, err = run_main("--prepare_mtd", str(original("mtd")), *settings, config=SHIPPED)
    words = shlex.split(out.splitlines()[-1].removeprefix("next: python main.py "))
    assert ("preset=laptop" in words) == preset and "preset=published" not in words, err
    built = load_settings(SHIPPED, [word for word in words if "=" in word])
    assert built.data.category == "magnetic_tile" and built.data.batch_size <= 8


@pytest.mark.parametrize("folder", ["data", "a/data", ".", "..", "a/..", "/a/data"])
def test_a_sibling_lies_beside_the_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "work" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert (named_path(Path(folder)).parent / "VisA").resolve() == Path(folder).resolve().parent / "VisA"


def test_data_in_the_current_folder_gets_a_sibling(original, run_main, tmp_path, monkeypatch):
    root = str(original("visa").resolve())
    config = tmp_path / "here.yaml"
    config.write_text(SHIPPED.read_text().replace("data_dir: datasets/MVTec", "data_dir: ."))
    (tmp_path / "MVTec").mkdir()
    monkeypatch.chdir(tmp_path / "MVTec")
    code, _, err = run_main("--prepare_visa", root, config=config)
    assert code == 0 and (tmp_path / "VisA" / "candle").is_dir() and not list((tmp_path / "MVTec").iterdir()), err
