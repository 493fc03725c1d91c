"""Reproduce the paper's table of a data set: all stages of its categories, with the published settings.

Each category is trained, adapted, and scored by batch maxima and per image, with adapted features and with feat0. What
is finished stands in the folder of the reproduction (reports/reproduction.py) and is not done again.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from commands.budget import time_calls, time_machine
from commands.stages import INCOMPLETE, RunPlan, report_failure, run_category
from config.checks import SECTIONS, did_you_mean
from config.keys import AUTO, NOTHING, PER_IMAGE, PLANNED, Settings
from config.load import CENTRE, PlainSections, build_settings, read_sections, settings_of_category, with_overrides
from config.published import published_data_set
from dataset import ImageFolder, View, hash_files, picture_fingerprint
from detection.calibrate import calibration_work
from detection.detector import load_detector, stack_pictures
from reports import reproduction
from reports.manifest import load_manifest
from reports.reproduction import Record, Score
from runtime import distributed
from runtime.device import choose_device, measure_peak_memory
from runtime.errors import UserError
from storage.atomic_file import ensure_writable
from storage.fingerprint import as_stored
from train import plan_training
from training import checkpoint
from training.batches import full_batches
from training.checkpoint import FEATURES_PREFIX, PUBLISHED_EXTRACTOR
from training.log import ADAPTATION, TRAINING, stage_seconds

PUBLISHED = "published"  # preset, and protocol of scores
TIMED_CALLS = 4  # detections of an image, the first of which does not count
SECONDS_PER_HOUR = 3600

Result = TypeVar("Result")


class Work(NamedTuple):
    """What is left of a category: training steps, and images to reconstruct."""

    steps: int
    images: int


def wanted_categories(data_set: str, names: Sequence[str] | None) -> list[str]:
    """Return the categories to reproduce, all by default. Raise UserError for one that the paper does not have."""
    published = list(published_data_set(data_set))
    for name in names or ():
        if name not in published:
            hint = did_you_mean(name, published) or f"; it has {', '.join(published)}"
            remedy = "for other data use --train --detection"
            raise UserError(
                f"--categories names {name!r}, for which the paper has no result in {data_set}{hint}; {remedy}"
            )
    return [name for name in published if not names or name in names]


def published_sections(path: str, data_set: str, overrides: Sequence[str]) -> PlainSections:
    """Return the sections of a file with the published settings of a data set, and the overrides on top.

    The folders are the file's where it names this data set, else datasets/<name> and checkpoints/<name>.
    """
    data_set = next(iter(published_data_set(data_set).values()))["data_set"]  # as the paper spells it
    file, given = read_sections(path, ["preset=null"]), published_overrides(data_set)
    data, model = file.get("data") or {}, file.get("model") or {}
    if str(data.get("name")).lower() != data_set.lower():
        given += [f"data.data_dir=datasets/{data_set}", f"model.checkpoint_dir=checkpoints/{data_set}"]
    if (extractor := model.get("feature_extractor", AUTO)) != AUTO:
        given.append(f"model.feature_extractor={extractor}")
    return read_sections(path, [*given, *overrides])


def published_overrides(data_set: str) -> list[str]:
    """Return what a reproduction sets beside the preset. One reconstruction, so that both protocols compare."""
    given = [f"preset={PUBLISHED}", f"data.name={data_set}", f"model.feature_extractor={PUBLISHED_EXTRACTOR}"]
    given += ["model.load_chp=auto", "model.DA_chp=auto", "score.draws=1"]
    return [*given, f"metrics.centre_crop={CENTRE}", "metrics.visualisation=False"]


def reproduce(content: PlainSections, categories: Sequence[str], output: Path | None, force: bool) -> int:
    """Do what is left of the categories, then write and print the table; return the exit code.

    `force` repeats finished detections. Without `output` the folder is results/reproduction_<data set>.
    """
    group, failed, data_set = distributed.group(), dict[str, str](), str(content["data"]["name"])
    folder = output or Path("results") / f"reproduction_{data_set}"
    for name in published_data_set(data_set):
        reproduction.load_record(folder, data_set, name)  # a damaged one is reported before hours of work
    if group.is_main:
        ensure_writable(folder, reproduction.REMEDY)
    chosen = [final_settings(settings_of_category(content, name)) for name in categories]
    works = [attempt(settings, failed, lambda settings: work_left(settings, folder, force)) for settings in chosen]
    ready = [(settings, work) for settings, work in zip(chosen, works, strict=True) if work]
    print_hours(ready)
    for settings, _ in ready:
        print(f"\n{settings.data.category}", flush=True)
        attempt(settings, failed, lambda settings: reproduce_category(settings, folder, force))
    if group.is_main:
        table = reproduction.write_tables(folder, data_set)
        print(f"\n{table}\n\ntable.md, .csv and .json in {folder}", flush=True)
    for name, line in failed.items():
        print(f"{name} failed: {line}", flush=True)
    return INCOMPLETE if failed else 0


def attempt(settings: Settings, failed: dict[str, str], do: Callable[[Settings], Result]) -> Result | None:
    """Do something with a category; None if it fails by a mistake of the user's, which `failed` gets and is printed."""
    name = settings.data.category
    try:
        return do(settings)
    except BrokenPipeError:
        raise
    except Exception as error:
        failed[name] = report_failure(name, error)
        return None


def final_settings(settings: Settings) -> Settings:
    """Return the settings with the last epoch of each stage for detection."""
    model = settings.model
    if model.epochs == PLANNED:
        raise UserError("--reproduce trains for the published epochs; remove budget_minutes and any other preset")
    return replace(settings, model=replace(model, load_chp=model.epochs, DA_chp=model.DA_epochs))


def detections(settings: Settings) -> Iterator[Settings]:
    """Yield the settings of each detection of a category: two kinds of scores, features adapted and not.

    The last one, adapted and per image, leaves its calibration beside the weights.
    """
    per_image = replace(
        settings, score=replace(settings.score, protocol=PER_IMAGE), data=replace(settings.data, test_batch_size=None)
    )
    for scored in (settings, per_image):
        for epoch in sorted({0, settings.model.DA_epochs}, reverse=scored is settings):
            yield replace(scored, model=replace(scored.model, DA_chp=epoch))


def stages_before(settings: Settings) -> frozenset[str]:
    """Return the stages before detection, but for official weights. A finished stage ends at once."""
    folder, model = settings.checkpoint_folder, settings.model
    stages = set() if is_official(folder, model.epochs) else {"train"}
    if model.DA_epochs and (stages or not is_official(folder, model.DA_epochs, FEATURES_PREFIX)):
        stages.add("domain_adaptation")
    return frozenset(stages)


def is_official(folder: Path, epoch: int, prefix: str = "") -> bool:
    """Return whether the folder has this epoch's weights from the official release, which name no settings."""
    path = checkpoint.epochs_in(folder, prefix).get(epoch)
    return path is not None and checkpoint.changes_since(path, {}) is None


def work_left(settings: Settings, folder: Path, force: bool) -> Work:
    """Return the work that is left of a category. Raise UserError for mistakes that would stop it later."""
    model, plan, stages = settings.model, plan_training(settings), stages_before(settings)
    left = [wanted for wanted in detections(settings) if force or not finished_score(wanted, folder)]
    if not left:
        return Work(0, 0)
    trained = checkpoint.epochs_in(settings.checkpoint_folder).get(model.epochs)
    steps = model.epochs * plan.batches - checkpoint.steps_done(settings.checkpoint_folder)
    if "train" not in stages or (trained and checkpoint.changes_since(trained, plan.made_with) == ""):
        steps = 0
    images, test, size = 0, len(test_pictures(settings)), settings.data.DA_batch_size
    if "domain_adaptation" in stages and (steps or model.DA_epochs not in adapted_epochs(settings)):
        batches = full_batches(len(plan.pictures), size, "data.DA_batch_size", 0)
        images = model.DA_epochs * batches * (size // 2)  # the others are targets
    for wanted in left:
        calibrates = wanted.score.protocol == PER_IMAGE
        images += test + (calibration_work(wanted, len(plan.pictures), 0)[0] if calibrates else 0)
    return Work(steps, images)


def adapted_epochs(settings: Settings) -> dict[int, Path]:
    return checkpoint.epochs_in(settings.checkpoint_folder, FEATURES_PREFIX)


def test_pictures(settings: Settings) -> ImageFolder:
    return ImageFolder(settings.category_dir, "test", View(**settings.view_arguments()))


def print_hours(ready: Sequence[tuple[Settings, Work]]) -> None:
    """Time training steps and detection on this machine; print the hours that each category needs, and all."""
    timed = next((settings for settings, work in ready if any(work)), None)
    if timed is None:
        return
    print(f"timing training steps and detection of {timed.data.category} on this machine", flush=True)
    costs = distributed.group().broadcast(time_machine(plan_training(timed), True))
    print(f"a training step takes {costs.step:.3g} s, an image in detection {costs.picture:.3g} s", flush=True)
    hours = [(work.steps * costs.step + work.images * costs.picture) / SECONDS_PER_HOUR for _, work in ready]
    for (settings, work), each in zip(ready, hours, strict=True):
        rest = f"{work.steps} training steps, {work.images} images to reconstruct" if any(work) else "finished"
        print(f"  {settings.data.category:12} {each:8.2f} h: {rest}", flush=True)
    print(f"  {'total':12} {sum(hours):8.2f} h", flush=True)


def reproduce_category(settings: Settings, folder: Path, force: bool) -> None:
    """Do the stages and detections of a category that have no result, and record each result."""
    group, wanted = distributed.group(), list(detections(settings))
    if group.broadcast(not force and all(finished_score(each, folder) for each in wanted)):
        print(f"finished: {reproduction.record_path(folder, settings.data.category)}", flush=True)
        return
    if stages := group.broadcast(stages_before(settings)):
        run_category(settings, RunPlan(stages, resume=True))
    for each in wanted:
        if group.broadcast(force or not finished_score(each, folder)):
            place = folder / each.data.category / f"{each.score.protocol}-feat{each.model.DA_chp}"
            result = run_category(each, RunPlan(frozenset({"detection"}), output=place, force=force))
            if group.is_main and result.folder:
                reproduction.save_record(folder, updated_record(settings, measure_score(each, result.folder), folder))
        group.wait()
    if group.is_main:
        print(reproduction.render_rows(reproduction.rows_of(load_record(settings, folder))), flush=True)


def updated_record(settings: Settings, score: Score, folder: Path) -> Record:
    """Return the category's record with a new score, without scores of kinds that these settings do not have."""
    kinds = [(wanted.score.protocol, wanted.model.DA_chp) for wanted in detections(settings)]
    epochs = {TRAINING: settings.model.epochs, ADAPTATION: settings.model.DA_epochs}
    seconds = stage_seconds(settings.checkpoint_folder, epochs)
    record = load_record(settings, folder).with_score(score, kinds)
    return replace(record, changed=changed_settings(settings), stage_seconds=seconds)


def made_from(settings: Settings) -> dict[str, object]:
    """Return what scores depend on beside the weights: settings and test pictures."""
    return {"settings": effective(settings), "pictures": picture_fingerprint(test_pictures(settings).samples)}


def effective(settings: Settings) -> dict[str, object]:
    """Return all settings that change weights or scores, by their paths."""
    values: dict[str, object] = {"model.feature_extractor": settings.model.feature_extractor}
    for section, kind in SECTIONS.items():
        for spec in fields(kind):
            if spec.metadata["affects"] != NOTHING:
                values[f"{section}.{spec.name}"] = getattr(getattr(settings, section), spec.name)
    return as_stored({**values, "model.DA_chp": settings.model.DA_chp})


def weights_hashes(settings: Settings) -> dict[str, str]:
    """Return the hash of each file of weights that detection reads, by its name, as far as they exist."""
    folder, model = settings.checkpoint_folder, settings.model
    wanted = ((checkpoint.epochs_in(folder), model.load_chp), (adapted_epochs(settings), model.DA_chp))
    paths = [files[epoch] for files, epoch in wanted if isinstance(epoch, int) and epoch in files]
    return dict(zip((path.name for path in paths), hash_files(paths), strict=True))


def load_record(settings: Settings, folder: Path) -> Record:
    return reproduction.load_record(folder, settings.data.name, settings.data.category)


def finished_score(settings: Settings, folder: Path) -> Score | None:
    return load_record(settings, folder).finished(made_from(settings), weights_hashes(settings))


def measure_score(settings: Settings, result: Path) -> Score:
    """Return what a detection has reached, by its folder, and what the detection of one picture costs."""
    made, model = load_manifest(result), settings.model
    seconds, memory = measure_picture(settings)
    return Score(
        protocol=settings.score.protocol,
        features=model.DA_chp,
        batch_size=made["settings"]["data"]["test_batch_size"],
        adapted=model.DA_chp == model.DA_epochs,
        metrics=reproduction.percentages(made["metrics"]),
        seconds=seconds,
        memory=memory if math.isfinite(memory) else None,
        made_from=as_stored(made_from(settings)),
        weights=weights_hashes(settings),
        folder=str(result),
    )


def measure_picture(settings: Settings) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of detecting one test picture alone, its reading not counted."""
    device = choose_device(settings.model.device)
    detector, *_ = load_detector(settings, settings.checkpoint_folder, device)
    test = ImageFolder(settings.category_dir, "test", detector.view, masks=False)
    picture = stack_pictures(next(test.only(test.names()[:1]).batches(1, 0)))

    def detect() -> None:
        detector.predict_batch(picture, detector.picture_noise)

    return statistics.median(time_calls(detect, TIMED_CALLS)[1:]), measure_peak_memory(detect, device)


def changed_settings(settings: Settings) -> dict[str, object]:
    """Return the settings that are not the published ones, by their paths."""
    data = settings.data
    given = [*published_overrides(data.name), f"data.data_dir={data.data_dir}", f"data.category={data.category}"]
    published, ours = effective(final_settings(build_settings(with_overrides({}, given)))), effective(settings)
    return {name: value for name, value in ours.items() if value != published[name]}
