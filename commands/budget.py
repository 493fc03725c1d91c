"""Give training the time that training.budget_minutes leaves beside detection on this machine.

A few steps and pictures are timed, so that detection's time is known in training steps; training/pace.py does the rest.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import NamedTuple

from torch import Tensor

import train
from config.keys import PLANNED, VALIDATION, WSD, Settings
from dataset import ImageFolder, Item
from detection.calibrate import calibration_work, image_descriptors, parts_of_batch, placeholder_references
from detection.detector import build_detector, map_batches, stack_pictures
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from training import checkpoint, networks
from training.feature_space import FeatureSpace
from training.normal_pictures import normal_splits
from training.pace import RESERVE, SECONDS_PER_MINUTE, TRAINING_SHARE, Clock, Pace

TIMED_STEPS, TIMED_PICTURES = 5, 8
FEWEST_STEPS = 100  # fewer give a network that detects nothing
DRAWING_SECONDS = 0.25  # for a test picture's figure, metrics and table rows


class Costs(NamedTuple):
    step: float  # seconds of a training step on this machine
    picture: float = 0.0  # seconds of a picture in detection
    descriptors: float = 0.0  # seconds of the descriptors of a picture


def fit_budget(
    settings: Settings, stages: Collection[str], resume: bool, inputs: int | None = None
) -> tuple[Settings, Clock | None]:
    """Return the settings with all training steps that are decided, and a clock if it is to decide them.

    It does so if model.epochs is `auto`, a budget is set, and no earlier run that `resume` continues has decided.
    `inputs` is the number of pictures of --input, None where detection scores the test pictures.
    """
    training = settings.training
    if "train" not in stages or not (training.decay or settings.model.epochs == PLANNED):
        return settings, None
    began, plan, processes = monotonic(), train.plan_training(settings), distributed.group()
    if training.decay:
        epochs = math.ceil(training.decay[-1] / plan.batches)
        return settings.with_steps(epochs, training.schedule, training.decay), None
    folder, budget = settings.checkpoint_folder, settings.planning_arguments()
    steps = processes.broadcast(checkpoint.steps_of_training(folder, plan.made_with, budget) if resume else None)
    if steps:
        print(f"{steps['epochs']} epochs, as in the training in {folder}", flush=True)
        return settings.with_steps(**steps), None
    plan = replace(plan, settings=plan.settings.with_steps(PLANNED, WSD, None))
    return settings.with_steps(PLANNED, WSD, None), start_clock(plan, "detection" in stages, inputs, began)


def start_clock(plan: train.TrainingPlan, detects: bool, inputs: int | None, began: float) -> Clock:
    """Return the clock of a run that began at `began`, and print about how many steps fit its budget."""
    training, batch_size = plan.settings.training, plan.settings.data.batch_size
    budget = training.budget_minutes
    if budget is None:
        raise UserError("model.epochs is auto, but no budget is given; set budget_minutes")
    print(f"timing this machine, to fit {plan.settings.data.category} into {budget:g} minutes", flush=True)
    costs = distributed.group().broadcast(time_machine(plan, detects))
    calibration, described, test = detection_work(plan, inputs) if detects else (0, 0, 0)
    others = calibration * costs.picture + described * costs.descriptors + test * (costs.picture + DRAWING_SECONDS)
    most = training.most_steps or math.inf
    clock = Clock(budget * SECONDS_PER_MINUTE, began, costs.step, others, most, now=monotonic)
    encoded = len(plan.pictures) * costs.descriptors if plan.settings.learns_features else 0.0  # before the first step
    fitting = replace(clock, began=began - encoded).steps_left(0)
    minutes = fitting * costs.step / SECONDS_PER_MINUTE
    trained = f"{fitting} training steps of {batch_size} pictures ({costs.step:.2g} s each) in {minutes:.1f} min"
    compared = f"{calibration + test} pictures to compare ({costs.picture:.2g} s each)"
    rest = f"{described} to compute descriptors of ({costs.descriptors:.2g} s each)"
    print(f"plan: about {trained}; {compared} and {rest} in {others / SECONDS_PER_MINUTE:.1f} min", flush=True)
    for line in budget_warnings(clock, fitting):
        print(line, flush=True)
    return clock


def budget_warnings(clock: Clock, fitting: int) -> Iterator[str]:
    """Yield what a budget is too short for, where `fitting` training steps fit."""
    minutes, needed = clock.budget / SECONDS_PER_MINUTE, clock.detection / SECONDS_PER_MINUTE
    if clock.detection > (RESERVE - TRAINING_SHARE) * clock.budget:
        share = f"training gets {100 * TRAINING_SHARE:.0f} % of the budget, so that the run takes longer"
        yield f"detection takes about {needed:.0f} of {minutes:g} minutes; {share}"
    if fitting < min(FEWEST_STEPS, clock.most):
        least = math.ceil(FEWEST_STEPS * clock.step / TRAINING_SHARE / SECONDS_PER_MINUTE)
        few = f"warning: only about {fitting} training steps fit, too few for a network that detects defects"
        yield f"{few}; set budget_minutes={least} or more"


def detection_work(plan: train.TrainingPlan, inputs: int | None) -> tuple[int, int, int]:
    """Return how many normal pictures to score, how many to compute only descriptors of, and how many test pictures."""
    settings, unseen = plan.settings, plan.held_out
    if settings.calibration.on_validation:
        unseen = normal_splits(settings)[VALIDATION]
    scored, described = calibration_work(settings, len(plan.pictures) + len(plan.held_out), len(unseen))
    if inputs is None:
        inputs = len(ImageFolder(settings.category_dir, "test", plan.pictures.view, masks=False))
    return scored, described, inputs


def time_machine(plan: train.TrainingPlan, detects: bool) -> Costs:
    """Return the seconds of a step and, if the run `detects`, of a picture, measured with untrained networks."""
    settings, model = plan.settings, plan.settings.model
    device, batch_size = choose_device(model.device), settings.data.batch_size
    every = max(1, len(plan.pictures) // TIMED_PICTURES)  # their shapes may differ
    few = plan.pictures.only(plan.pictures.names()[::every][:TIMED_PICTURES])
    trial = replace(settings, model=replace(model, epochs=1))
    pace = Pace.of_steps(TIMED_STEPS)
    trainer = train.build_trainer(trial, pace, device)
    inputs = few.pixels(model.num_workers)
    if settings.learns_features:
        learnt = train.feature_reader(settings, trainer).learn(inputs)
        trainer.space, inputs = FeatureSpace.restore(learnt["space"]), learnt["features"]
    batch = list(itertools.islice(itertools.cycle(inputs), batch_size))
    steps = train.training_loop(trainer, batch, pace, trial)
    step = statistics.median(time_calls(lambda: next(steps, None), TIMED_STEPS)[1:])
    if not detects:
        return Costs(step)
    folder, name = settings.checkpoint_folder, model.feature_extractor
    extractor, _ = checkpoint.restore_features(folder, 0, name, model.backbone_weights)
    detector = build_detector(settings, networks.build_unet(settings), extractor, device, trainer.space)
    area = sum(plan.pictures.squares().values())
    references = placeholder_references(detector, next(few.batches(1, 0))[0].picture[None], area)

    def seconds_of(work: Callable[[Sequence[Item]], list[dict[str, Tensor]]]) -> float:
        return time_calls(lambda: list(map_batches(detector, few, work, 0)), 2)[-1] / len(few)

    picture = seconds_of(lambda items: parts_of_batch(detector, stack_pictures(items), [references] * len(items)))
    return Costs(
        step, picture, seconds_of(lambda items: [image_descriptors(detector, stack_pictures(items))] * len(items))
    )


def time_calls(call: Callable[[], object], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return seconds
