import pytest

from config.published import published_metrics, published_rows


@pytest.mark.parametrize(("data_set", "means"), [("MVTec", (99.8, 98.1, 92.3)), ("VisA", (98.9, 97.6, 92.7))])
def test_the_published_table_has_the_published_means(data_set, means):
    rows = [row for row in published_rows().values() if row["data_set"] == data_set]
    for column, mean in zip(("image_auroc", "pixel_auroc", "pro"), means, strict=True):
        assert round(sum(float(row[column]) for row in rows) / len(rows), 1) == mean


def test_a_category_of_another_data_set_has_no_published_metrics():
    assert published_metrics("screw") == published_metrics("screw", "mvtec")
    assert published_metrics("screw")["image_auroc"] == 99.0
    assert published_metrics("screw", "own") == published_metrics("unknown") == {}
