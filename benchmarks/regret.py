"""python -m benchmarks.regret DATA_DIR/CATEGORY CHECKPOINT_DIR [--every 1] [KEY=VALUE …]: what the choice of --tune is worth.

All that --tune tries with the preset is judged on the category's test pictures as well, by the labels that it does not see. The regret is the
best image AUROC of all that was tried less that of the choice.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import metrics
from config.keys import Settings
from config.load import load_settings
from dataset import ImageFolder
from detection.detector import load_detector
from detection.tune import Trial, check_tuning, prepare_bench, run_trials
from runtime.device import choose_device, keep_memory

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regret", description="Judges by test labels all that --tune tries."
    )
    parser.add_argument("category", type=Path, metavar="DATA_DIR/CATEGORY")
    parser.add_argument("checkpoint_dir", type=Path, help="holds a folder of the category's weights")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th test picture")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    places = [
        f"data.data_dir={options.category.parent}",
        f"data.category={options.category.name}",
        f"model.checkpoint_dir={options.checkpoint_dir}",
    ]
    keep_memory()
    judge(
        load_settings(ROOT / "config.yaml", ["preset=laptop", "data.name=own", *places, *options.settings]),
        options.every,
    )


def judge(settings: Settings, every: int) -> None:
    """Prints what was tried, a line each, and the regret."""
    device = choose_device(settings.model.device)
    with tempfile.TemporaryDirectory() as folder:
        _, pictures, unseen = check_tuning(settings, Path(folder))
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, device)
    test = ImageFolder(settings.category_dir, "test", pictures.view, masks=False)
    items = [
        item for batch in test.only(test.names()[::every]).batches(1, settings.model.num_workers) for item in batch
    ]
    bench = replace(prepare_bench(pictures, unseen, settings), others=[item.picture for item in items])
    print("| setting | value | objective | taken | image AUROC |\n|---|---|---|---|---|")
    best = chosen = 0.0
    for result in run_trials(detector, settings, bench):
        auroc = image_auroc(result.trial, [item.label for item in items])
        best, chosen = max(best, auroc), auroc if result.taken else chosen
        taken = "yes" if result.taken else ""
        print(
            f"| {result.setting} | {result.value} | {result.quality.objective:.4f} | {taken} | {100 * auroc:.1f} |",
            flush=True,
        )
    print(
        f"\n{settings.data.category}: chosen {100 * chosen:.1f}, best {100 * best:.1f}, regret {100 * (best - chosen):.1f}"
    )


def image_auroc(trial: Trial, labels: list[int]) -> float:
    detector, known = trial.detector, trial.detector.required_calibration
    scores = [detector.assemble(parts, known.balance, known.scales).score for parts in trial.others]
    return metrics.image_auroc(np.array(scores), np.array(labels))


if __name__ == "__main__":
    main()
