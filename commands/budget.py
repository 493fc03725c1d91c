"""How much training fits a budget of minutes on this machine, found by timing its own steps before it starts.

Detection is counted first, with all that it does on normal and test pictures; training gets what is left.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

import train
from config.keys import PLANNED, Settings
from dataset import ImageFolder, View, full_batches
from detection.calibrate import calibration_work, image_descriptors, parts_of_batch, placeholder_references
from detection.detector import assemble_detector, in_batches
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from training import checkpoint
from training.networks import build_unet

TIMED_STEPS, TIMED_PICTURES = 5, 8
FEWEST_STEPS = 100  # below them there is nothing to detect with
TRAINING_SHARE = 0.4  # of the budget is training, however long detection takes
RESERVE = 0.9  # share of the budget that is planned for, as machines have other things to do
DRAWING_SECONDS = 0.25  # a test picture's figure, metrics and table rows
SECONDS_PER_MINUTE = 60


class Costs(NamedTuple):
    """Seconds that a training step takes, a picture in detection, and one whose looks alone are learnt."""

    step: float
    picture: float
    look: float


def fit_budget(settings: Settings, stages: Collection[str], resume: bool, judged: int | None = None) -> Settings:
    """With as many epochs as fit training.budget_minutes, where model.epochs is left to it; a run that goes on, or does not train, has those that
    this budget had planned. `judged` is how many pictures detection gets (None: the test pictures).

    Raises FileNotFoundError where there are no pictures, ValueError where the budget holds no useful training.
    """
    if settings.model.epochs != PLANNED:
        return settings
    trains = "train" in stages
    epochs = distributed.group().broadcast(epochs_planned_before(settings) if resume or not trains else None)
    if trains and epochs:
        print(f"{epochs} epochs, as {settings.checkpoint_folder} has them planned", flush=True)
    elif trains:
        epochs = distributed.group().broadcast(plan_epochs(settings, stages, judged))
    return replace(settings, model=replace(settings.model, epochs=epochs or PLANNED))


def epochs_planned_before(settings: Settings) -> int | None:
    """The epochs of the training that the checkpoint folder holds, finished or not, if it is of these settings, pictures and minutes."""
    try:
        learnt, _ = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments())).split(
            **settings.split_arguments()
        )
    except FileNotFoundError:  # a category that is only detected
        return None
    return checkpoint.epochs_of_training(
        settings.checkpoint_folder, train.training_inputs(settings, learnt), settings.planning_arguments()
    )


def plan_epochs(settings: Settings, stages: Collection[str], judged: int | None) -> int:
    """Epochs; says what the minutes go into."""
    budget = settings.training.budget_minutes
    if budget is None:
        raise UserError("model.epochs is auto for a budget, which is not given; set budget_minutes")
    whole = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    learnt, held_out = whole.split(**settings.split_arguments())
    batches = full_batches(len(learnt), settings.data.batch_size, "data.batch_size")
    print(f"timing this machine, to fit {settings.data.category} into {budget:g} minutes", flush=True)
    began = time.monotonic()
    costs = distributed.group().broadcast(time_machine(settings, whole, "detection" in stages))
    compared = looked_at = test = 0
    if "detection" in stages:
        compared, looked_at = calibration_work(
            settings.score.parts or (), len(learnt), len(held_out), settings.calibration.pictures
        )
        test = (
            judged if judged is not None else len(ImageFolder(settings.category_dir, "test", whole.view, masks=False))
        )
    others = (
        compared * costs.picture
        + looked_at * costs.look
        + test * (costs.picture + DRAWING_SECONDS)
        + (time.monotonic() - began)
    )
    steps = steps_within(budget, costs.step, others, settings.training.most_steps)
    if steps < batches:
        print(f"an epoch is {batches} steps, more than the {steps} to be planned; it is trained to its end")
    epochs = max(1, steps // batches)
    print(
        f"plan: {epochs * batches} training steps of {settings.data.batch_size} pictures ({costs.step:.2g} s each) in "
        f"{epochs * batches * costs.step / SECONDS_PER_MINUTE:.1f} min; {compared + test} pictures to compare ({costs.picture:.2g} s each) and "
        f"{looked_at} to look at ({costs.look:.2g} s each) in {others / SECONDS_PER_MINUTE:.1f} min",
        flush=True,
    )
    return epochs


def steps_within(budget: float, step: float, others: float, most: int | None = None) -> int:
    """Training steps of `step` seconds, `most` of them, that `budget` minutes hold beside `others` seconds, which leave them TRAINING_SHARE at least.

    Raises ValueError where they are too few.
    """
    seconds = budget * SECONDS_PER_MINUTE
    if RESERVE * seconds - others < TRAINING_SHARE * seconds:
        print(
            f"detection takes {others / SECONDS_PER_MINUTE:.0f} min: all of it takes more than {budget:g} minutes, of which training gets a part"
        )
    fitting = int(max(RESERVE * seconds - others, TRAINING_SHARE * seconds) / step)
    if fitting < FEWEST_STEPS:
        wanted = math.ceil(FEWEST_STEPS * step / TRAINING_SHARE / SECONDS_PER_MINUTE)
        raise UserError(
            f"budget_minutes is {budget:g}, which leaves {fitting} training steps; set it to {wanted} or more on this machine"
        )
    return min(most or fitting, fitting)


def time_machine(settings: Settings, pictures: ImageFolder, detects: bool) -> Costs:
    """What steps and, where a run `detects`, pictures take here, with networks of these settings and a few of the pictures."""
    device = choose_device(settings.model.device)
    few = pictures.only(pictures.names()[:TIMED_PICTURES])
    pixels = [
        pixel
        for pixel, _ in zip(
            itertools.cycle(few.pixels(settings.model.num_workers)), range(settings.data.batch_size), strict=False
        )
    ]
    trial = replace(settings, model=replace(settings.model, epochs=1))
    steps = train.training_loop(train.build_trainer(trial, TIMED_STEPS, device), pixels, TIMED_STEPS, trial)
    step = statistics.median(seconds_between(lambda: next(steps, None), TIMED_STEPS)[1:])
    if not detects:
        return Costs(step, 0, 0)
    extractor, _ = checkpoint.restore_features(
        settings.checkpoint_folder, 0, settings.model.feature_extractor, settings.model.backbone_weights
    )
    detector = assemble_detector(settings, build_unet(settings), extractor, device)
    references = placeholder_references(detector, next(few.batches(1, 0))[0].picture[None], len(pictures))

    def compare() -> object:
        return list(in_batches(detector, few, lambda batch: parts_of_batch(detector, batch, references), 0))

    def look() -> object:
        return list(in_batches(detector, few, lambda batch: [image_descriptors(detector, batch)] * len(batch), 0))

    return Costs(step, seconds_between(compare, 2)[-1] / len(few), seconds_between(look, 2)[-1] / len(few))


def seconds_between(call: Callable[[], object], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds
