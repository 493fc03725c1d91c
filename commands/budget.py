"""Plan how many epochs fit into training.budget_minutes on this machine.

A few steps and pictures are timed. Detection is planned first, with all its work on normal and test pictures;
training gets the rest.
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
from dataset import ImageFolder
from detection.calibrate import calibration_work, image_descriptors, parts_of_batch, placeholder_references
from detection.detector import build_detector, map_batches
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import MissingFileError, UserError
from training import checkpoint
from training.networks import build_unet

TIMED_STEPS, TIMED_PICTURES = 5, 8
FEWEST_STEPS = 100  # fewer give a network that detects nothing
TRAINING_SHARE = 0.4  # of the budget, at least, goes to training, however long detection takes
RESERVE = 0.9  # share of the budget that is planned: the machine has other work too
DRAWING_SECONDS = 0.25  # for a test picture's figure, metrics and table rows
SECONDS_PER_MINUTE = 60


class Costs(NamedTuple):
    """Seconds on this machine: a training step, a picture in detection, the descriptors of a picture."""

    step: float
    picture: float = 0.0
    descriptors: float = 0.0


class DetectionWork(NamedTuple):
    """Numbers of pictures: normal ones to score, those to compute only descriptors of, and test pictures."""

    calibration: int = 0
    described: int = 0
    test: int = 0

    def seconds(self, costs: Costs) -> float:
        compared = self.calibration * costs.picture + self.described * costs.descriptors
        return compared + self.test * (costs.picture + DRAWING_SECONDS)


def fit_budget(settings: Settings, stages: Collection[str], resume: bool, inputs: int | None = None) -> Settings:
    """Return the settings with as many epochs as fit the budget, if model.epochs is auto for it.

    A run that resumes or does not train gets the epochs planned earlier. `inputs` is the number of pictures of --input;
    None: detection scores the test pictures. Raise UserError where the budget holds no useful training.
    """
    if settings.model.epochs != PLANNED:
        return settings
    trains, processes = "train" in stages, distributed.group()
    epochs = processes.broadcast(epochs_planned_before(settings) if resume or not trains else None)
    if trains and epochs:
        print(f"{epochs} epochs, as planned for the training in {settings.checkpoint_folder}", flush=True)
    elif trains:
        epochs = processes.broadcast(plan_epochs(settings, stages, inputs))
    return replace(settings, model=replace(settings.model, epochs=epochs or PLANNED))


def epochs_planned_before(settings: Settings) -> int | None:
    """Return the epochs of the folder's training, if it has these settings, pictures and minutes."""
    try:
        plan = train.plan_training(settings)
    except MissingFileError:  # a category that is only detected
        return None
    return checkpoint.epochs_of_training(plan.folder, plan.made_with, settings.planning_arguments())


def plan_epochs(settings: Settings, stages: Collection[str], inputs: int | None) -> int:
    """Return the number of epochs that fit, and print the plan."""
    budget, batch_size = settings.training.budget_minutes, settings.data.batch_size
    if budget is None:
        raise UserError("model.epochs is auto for a budget, which is not given; set budget_minutes")
    began, plan = time.monotonic(), train.plan_training(settings)
    batches, detects = plan.batches, "detection" in stages
    print(f"timing this machine, to fit {settings.data.category} into {budget:g} minutes", flush=True)
    costs = distributed.group().broadcast(time_machine(plan, detects))
    work = detection_work(plan, inputs) if detects else DetectionWork()
    others = work.seconds(costs) + time.monotonic() - began
    fitting = steps_within(budget, costs.step, others, settings.training.most_steps)
    if fitting < batches:
        print(f"an epoch has {batches} steps, more than the {fitting} that fit; one whole epoch is trained")
    epochs = max(1, fitting // batches)
    steps = epochs * batches
    print(
        f"plan: {steps} training steps of {batch_size} pictures ({costs.step:.2g} s each) in "
        f"{steps * costs.step / SECONDS_PER_MINUTE:.1f} min; "
        f"{work.calibration + work.test} pictures to compare ({costs.picture:.2g} s each) and "
        f"{work.described} to compute descriptors of ({costs.descriptors:.2g} s each) in "
        f"{others / SECONDS_PER_MINUTE:.1f} min",
        flush=True,
    )
    return epochs


def detection_work(plan: train.TrainingPlan, inputs: int | None) -> DetectionWork:
    """Return the pictures of detection: for its calibration, and the `inputs` or else the test pictures."""
    settings = plan.settings
    work = calibration_work(
        settings.score.parts or (), len(plan.pictures), len(plan.held_out), settings.calibration.pictures
    )
    if inputs is None:
        inputs = len(ImageFolder(settings.category_dir, "test", plan.pictures.view, masks=False))
    return DetectionWork(*work, inputs)


def steps_within(budget: float, step: float, others: float, most: int | None = None) -> int:
    """Return the training steps, at most `most`, that fit into `budget` minutes beside `others` seconds.

    A step takes `step` seconds. Training gets at least TRAINING_SHARE of the budget. Raise UserError for too few steps.
    """
    seconds = budget * SECONDS_PER_MINUTE
    rest, least = RESERVE * seconds - others, TRAINING_SHARE * seconds
    if rest < least:
        print(
            f"detection takes {others / SECONDS_PER_MINUTE:.0f} min; "
            f"training gets its part too, so that all takes longer than {budget:g} minutes"
        )
    fitting = int(max(rest, least) / step)
    if fitting < FEWEST_STEPS:
        minutes = math.ceil(FEWEST_STEPS * step / TRAINING_SHARE / SECONDS_PER_MINUTE)
        raise UserError(
            f"budget_minutes is {budget:g}, which leaves {fitting} training steps; "
            f"set it to {minutes} or more on this machine"
        )
    return min(most or fitting, fitting)


def time_machine(plan: train.TrainingPlan, detects: bool) -> Costs:
    """Return the seconds of steps and, if the run `detects`, of pictures, with untrained networks."""
    settings, model = plan.settings, plan.settings.model
    device, batch_size = choose_device(model.device), settings.data.batch_size
    few = plan.pictures.only(plan.pictures.names()[:TIMED_PICTURES])
    pixels = list(itertools.islice(itertools.cycle(few.pixels(model.num_workers)), batch_size))
    trial = replace(settings, model=replace(model, epochs=1))
    steps = train.training_loop(train.build_trainer(trial, TIMED_STEPS, device), pixels, TIMED_STEPS, trial)
    step = statistics.median(time_calls(lambda: next(steps, None), TIMED_STEPS)[1:])
    if not detects:
        return Costs(step)
    extractor, _ = checkpoint.restore_features(
        settings.checkpoint_folder, 0, model.feature_extractor, model.backbone_weights
    )
    detector = build_detector(settings, build_unet(settings), extractor, device)
    references = placeholder_references(detector, next(few.batches(1, 0))[0].picture[None], len(plan.pictures))

    def compare() -> object:
        return list(map_batches(detector, few, lambda batch: parts_of_batch(detector, batch, references), 0))

    def describe() -> object:
        return list(map_batches(detector, few, lambda batch: [image_descriptors(detector, batch)] * len(batch), 0))

    return Costs(step, *(time_calls(work, 2)[-1] / len(few) for work in (compare, describe)))


def time_calls(call: Callable[[], object], times: int) -> list[float]:
    """Return the seconds that each of so many calls takes."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds
