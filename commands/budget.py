"""Plan how many epochs fit into training.budget_minutes on this machine.

It times a few steps and pictures. It plans detection first; training gets the rest.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

import train
from config.keys import PLANNED, Settings
from dataset import ImageFolder, Item
from detection.calibrate import calibration_work, image_descriptors, parts_of_batch, placeholder_references
from detection.detector import build_detector, map_batches, stack_pictures
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import MissingFileError, UserError
from training import checkpoint, networks

TIMED_STEPS, TIMED_PICTURES = 5, 8
FEWEST_STEPS = 100  # fewer give a network that detects nothing
TRAINING_SHARE = 0.4  # least share of the budget that training gets, however long detection takes
RESERVE = 0.9  # share of the budget that is planned: the machine has other work too
DRAWING_SECONDS = 0.25  # for a test picture's figure, metrics and table rows
SECONDS_PER_MINUTE = 60


class Costs(NamedTuple):
    step: float  # seconds of a training step on this machine
    picture: float = 0.0  # seconds of a picture in detection
    descriptors: float = 0.0  # seconds of the descriptors of a picture


def fit_budget(settings: Settings, stages: Collection[str], resume: bool, inputs: int | None = None) -> Settings:
    """Return the settings, with as many epochs as fit the budget if model.epochs is `auto` and a budget is set.

    A run that resumes or does not train gets the epochs planned earlier. `inputs` is the number of pictures of --input,
    None where detection scores the test pictures.
    """
    if settings.model.epochs != PLANNED:
        return settings
    trains, processes = "train" in stages, distributed.group()
    planned = None
    if resume or not trains:
        with suppress(MissingFileError):  # a run of detection alone may lack training pictures
            plan = train.plan_training(settings)
            folder, budget = settings.checkpoint_folder, settings.planning_arguments()
            planned = checkpoint.epochs_of_training(folder, plan.made_with, budget)
    epochs = processes.broadcast(planned)
    if trains and epochs:
        print(f"{epochs} epochs, as planned for the training in {settings.checkpoint_folder}", flush=True)
    elif trains:
        epochs = processes.broadcast(plan_epochs(settings, stages, inputs))
    return replace(settings, model=replace(settings.model, epochs=epochs or PLANNED))


def plan_epochs(settings: Settings, stages: Collection[str], inputs: int | None) -> int:
    """Return the number of epochs that fit, and print the plan."""
    budget, batch_size = settings.training.budget_minutes, settings.data.batch_size
    if budget is None:
        raise UserError("model.epochs is auto, but no budget is given; set budget_minutes")
    began, plan = time.monotonic(), train.plan_training(settings)
    batches, detects = plan.batches, "detection" in stages
    print(f"timing this machine, to fit {settings.data.category} into {budget:g} minutes", flush=True)
    costs = distributed.group().broadcast(time_machine(plan, detects))
    calibration, described, test = detection_work(plan, inputs) if detects else (0, 0, 0)
    others = calibration * costs.picture + described * costs.descriptors + test * (costs.picture + DRAWING_SECONDS)
    others += time.monotonic() - began
    fitting = steps_within(budget, costs.step, others, settings.training.most_steps)
    if fitting < batches:
        print(f"an epoch has {batches} steps, more than the {fitting} that fit; one whole epoch is trained")
    epochs = max(1, fitting // batches)
    steps = epochs * batches
    minutes = steps * costs.step / SECONDS_PER_MINUTE
    trained = f"{steps} training steps of {batch_size} pictures ({costs.step:.2g} s each) in {minutes:.1f} min"
    compared = f"{calibration + test} pictures to compare ({costs.picture:.2g} s each)"
    rest = f"{described} to compute descriptors of ({costs.descriptors:.2g} s each)"
    print(f"plan: {trained}; {compared} and {rest} in {others / SECONDS_PER_MINUTE:.1f} min", flush=True)
    return epochs


def detection_work(plan: train.TrainingPlan, inputs: int | None) -> tuple[int, int, int]:
    """Return how many normal pictures to score, how many to compute only descriptors of, and how many test pictures."""
    settings, normal = plan.settings, (len(plan.pictures), len(plan.held_out))
    scored, described = calibration_work(settings, *normal)
    if inputs is None:
        inputs = len(ImageFolder(settings.category_dir, "test", plan.pictures.view, masks=False))
    return scored, described, inputs


def steps_within(budget: float, step: float, others: float, most: int | None = None) -> int:
    """Return the steps of `step` seconds, at most `most`, that fit into `budget` minutes beside `others` seconds.

    Training gets at least TRAINING_SHARE of the budget. Raise UserError for too few steps.
    """
    seconds = budget * SECONDS_PER_MINUTE
    rest, least = RESERVE * seconds - others, TRAINING_SHARE * seconds
    if rest < least:
        result = f"with training, the run takes longer than {budget:g} minutes"
        print(f"detection takes {others / SECONDS_PER_MINUTE:.0f} min; {result}")
    fitting = int(max(rest, least) / step)
    if fitting < FEWEST_STEPS:
        minutes = math.ceil(FEWEST_STEPS * step / TRAINING_SHARE / SECONDS_PER_MINUTE)
        remedy = f"set it to {minutes} or more on this machine"
        raise UserError(f"budget_minutes is {budget:g}, which leaves {fitting} training steps; {remedy}")
    return min(most or fitting, fitting)


def time_machine(plan: train.TrainingPlan, detects: bool) -> Costs:
    """Return the seconds of a step and, if the run `detects`, of a picture, measured with untrained networks."""
    settings, model = plan.settings, plan.settings.model
    device, batch_size = choose_device(model.device), settings.data.batch_size
    few = plan.pictures.only(plan.pictures.names()[:TIMED_PICTURES])
    pixels = list(itertools.islice(itertools.cycle(few.pixels(model.num_workers)), batch_size))
    trial = replace(settings, model=replace(model, epochs=1))
    steps = train.training_loop(train.build_trainer(trial, TIMED_STEPS, device), pixels, TIMED_STEPS, trial)
    step = statistics.median(time_calls(lambda: next(steps, None), TIMED_STEPS)[1:])
    if not detects:
        return Costs(step)
    folder, name = settings.checkpoint_folder, model.feature_extractor
    extractor, _ = checkpoint.restore_features(folder, 0, name, model.backbone_weights)
    detector = build_detector(settings, networks.build_unet(settings), extractor, device)
    references = placeholder_references(detector, next(few.batches(1, 0))[0].picture[None], len(plan.pictures))

    def seconds_of(work: Callable[[Sequence[Item]], list[dict[str, Tensor]]]) -> float:
        return time_calls(lambda: list(map_batches(detector, few, work, 0)), 2)[-1] / len(few)

    picture = seconds_of(lambda items: parts_of_batch(detector, stack_pictures(items), [references] * len(items)))
    return Costs(
        step, picture, seconds_of(lambda items: [image_descriptors(detector, stack_pictures(items))] * len(items))
    )


def time_calls(call: Callable[[], object], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds
