"""Measure the regret of --tune by test labels.

    python -m benchmarks.tuning_regret DATA_DIR/CATEGORY CHECKPOINT_DIR [--every 1] [KEY=VALUE …]

The benchmark measures all that `--tune preset=laptop` tries by the labels of the category's test pictures, which --tune
does not read. The regret is the best image AUROC of all trials less that of the choice.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import metrics
from benchmarks.shared import CONFIG, Labels, add_category_arguments, every_nth, load_category_settings
from config.keys import Settings
from dataset import ImageFolder
from detection.detector import load_detector
from detection.tune import Trial, check_tuning, prepare_bench, run_trials
from runtime.device import choose_device, keep_memory


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_regret",
        description="Measures by test labels all that --tune tries from preset=laptop, and the regret of its choice.",
    )
    add_category_arguments(parser)
    options = parser.parse_intermixed_args()
    keep_memory()
    changes = ["preset=laptop", *options.settings]
    settings = load_category_settings(CONFIG, options.category, options.checkpoint_dir, changes)
    print_regret(settings, options.every)


def print_regret(settings: Settings, every: int) -> None:
    """Print a line for each trial, and the regret of the choice."""
    device = choose_device(settings.model.device)
    with TemporaryDirectory() as folder:
        _, pictures, unseen = check_tuning(settings, Path(folder))
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, device)
    test = every_nth(ImageFolder(settings.category_dir, "test", pictures.view, masks=False), every)
    items = [item for batch in test.batches(1, settings.model.num_workers) for item in batch]
    labels = np.array([item.label for item in items])
    bench = replace(prepare_bench(pictures, unseen, settings), others=[item.picture for item in items])
    print("| setting | value | objective | taken | image AUROC |\n|---|---|---|---|---|")
    best = chosen = 0.0
    for result in run_trials(detector, settings, bench):
        auroc = 100 * image_auroc(result.trial, labels)
        best, chosen = max(best, auroc), auroc if result.taken else chosen
        cells = result.setting, result.value, f"{result.quality.objective:.4f}", "yes" if result.taken else ""
        print(f"| {' | '.join(map(str, cells))} | {auroc:.1f} |", flush=True)
    print(f"\n{settings.data.category}: chosen {chosen:.1f}, best {best:.1f}, regret {best - chosen:.1f}")


def image_auroc(trial: Trial, labels: Labels) -> float:
    """Return the image AUROC of the test pictures, which a trial compares beside those of its bench."""
    detector, known = trial.detector, trial.detector.required_calibration
    scores = [detector.assemble(parts, known.balance, known.scales).score for parts in trial.others]
    return metrics.image_auroc(np.array(scores), labels)


if __name__ == "__main__":
    main()
