from benchmarks import synthetic_categories
from dataset import ImageFolder, View


def test_masks_hold_what_differs_from_a_normal_picture(tmp_path, monkeypatch):
    for name, value in {"SIDE": 96, "TRAINING": 1, "NORMAL": 1, "DEFECTIVE": 2}.items():
        monkeypatch.setattr(synthetic_categories, name, value)
    for name, category in synthetic_categories.CATEGORIES.items():
        synthetic_categories.write_category(tmp_path / name, category, seed=0)
        assert len(ImageFolder(tmp_path / name, "train", View(96))) == 1
        test = ImageFolder(tmp_path / name, "test", View(96), masks=True, mask_size=96)
        masks = {item.path: item.mask for item in next(test.batches(8, 0))}
        assert {path.split("/")[1] for path in masks} == {"good", *category.kinds}
        assert len(masks) == 1 + 2 * len(category.kinds)
        for path, mask in masks.items():
            assert mask is None if "/good/" in path else 0 < mask.mean() < 0.1
