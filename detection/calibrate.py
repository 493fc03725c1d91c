"""Measure a detector's calibration on normal pictures: references, scales, the balance and thresholds."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from anomaly_map import resize_maps, smooth
from config.keys import CROSS, DIFFUSION, LATEST, MEASURED, SPLIT, TRAIN, VALIDATION, Settings
from dataset import NORMAL, ImageFolder, Item, picture_fingerprint, to_pixels, to_unit_range
from ddad import content_seed
from detection import reference
from detection.calibration_file import CALIBRATION, calibration_name, load_calibration, save_calibration
from detection.detector import Detector, Parts, calibration_inputs, map_batches, stack_pictures
from detection.reference import RESIDUAL, Learnt, Reference, ResidualLength
from detection.threshold import Calibration, mean_maxima, pixel_quantiles
from images.synthetic_defects import ALL_DEFECTS, make_synthetic_anomalies
from runtime import distributed
from runtime.errors import MissingFileError, UserError
from runtime.progress import count_progress
from training import checkpoint
from training.dependence import Dependence, measure_dependence, measure_named_groups, named_groups
from training.normal_pictures import normal_splits

RESIDUAL_PICTURES = 64  # that teach the length of residuals; each has hundreds of positions
CHANGED_PICTURES = 8  # copies of which, with all kinds of synthetic anomalies, decide the weights of parts

Result = TypeVar("Result")


@dataclass(frozen=True)
class UnseenJudges:
    """Judge each normal picture by that member of the network, if it has members, that has not learnt the picture."""

    detector: Detector
    unseen: Mapping[str, int]  # members by the names of pictures

    @classmethod
    def of(cls, detector: Detector, settings: Settings) -> "UnseenJudges":
        path = checkpoint.find_weights(settings.checkpoint_folder, settings.model.load_chp)
        return cls(detector, checkpoint.unseen_by_member(path))

    def judge_of(self, name: str) -> Detector:
        """Return the detector with the member that has not learnt this picture, or with all where each is as good."""
        member = self.unseen.get(name)
        return self.detector if member is None else self.detector.with_member(member)

    def judge(self, work: Callable[[list[Item], Detector], list[Result]], items: Sequence[Item]) -> list[Result]:
        """Return the results of `work` on the pictures, in their order."""
        members, results = [self.unseen.get(item.path) for item in items], dict[int, Result]()
        for member in dict.fromkeys(members):
            places = [place for place, other in enumerate(members) if other == member]
            judge = self.judge_of(items[places[0]].path)
            results.update(zip(places, work([items[place] for place in places], judge), strict=True))
        return [results[place] for place in range(len(items))]


def calibrate(detector: Detector, settings: Settings) -> Detector:
    """Return the detector with its folder's calibration, or with a new one if that is missing or stale."""
    folder, name = settings.checkpoint_folder, calibration_name(settings)
    stored = distributed.group().broadcast(load_calibration(folder, name) or load_calibration(folder))
    calibration = current_calibration(detector, settings, stored)
    if settings.model.save_model and calibration != stored:
        try:
            save_calibration(folder, calibration, name, detector.region)
        except OSError as error:
            print(f"the calibration is not kept: {error}")
    print(calibration.describe(detector.false_positive_rate), flush=True)
    if calibration.source:
        print(
            f"the thresholds come from {calibration.source}, not from {settings.calibration.folder}/{NORMAL}",
            flush=True,
        )
    for name in calibration.odd:
        print(f"{name} is unlike the other normal pictures; if it is defective, name it in calibration.exclude")
    return replace(detector, calibration=calibration)


def current_calibration(detector: Detector, settings: Settings, stored: Calibration | None) -> Calibration:
    """Return the stored calibration, or measure one where networks, settings or normal pictures have changed."""
    folder, inputs, values = settings.checkpoint_folder, calibration_inputs(detector, settings), settings.as_dict()
    stale = stored.staleness(inputs) if stored else f"no {CALIBRATION} of this version in {folder}"
    valid = replace(stored, settings=values) if stored and not stale else None  # keys without effect may differ
    try:
        splits = normal_splits(settings)
    except FileNotFoundError as error:
        if valid:
            return valid
        problem = f"{folder / CALIBRATION} can't be used ({stale})"
        crop = stored.made_with.get("crop", detector.crop) if stored else detector.crop
        remedy = "" if crop == detector.crop else f", or set metrics.centre_crop={crop}"
        raise MissingFileError(f"{problem}, nor measured again: {error}{remedy}") from error
    normals = "{files}, {hash}".format(**picture_fingerprint(chain(*(split.samples for split in splits.values()))))
    if valid and valid.normals in (None, normals):
        return valid
    reason = stale or f"the pictures of {' or '.join(f'{split}/{NORMAL}' for split in splits)} have changed"
    if stored and stored.source:
        again, back = stored.source.folder, normal_folder(settings)
        remedy = f"run --recalibrate {again} again, or --recalibrate {back} to go back"
        raise UserError(f"the thresholds from {stored.source} hold no longer: {reason}; {remedy}")
    print(f"calibration is to be measured: {reason}", flush=True)
    calibration = measure_calibration(detector, splits[TRAIN], settings)
    return replace(calibration, made_with=inputs, settings=values, normals=normals)


def normal_folder(settings: Settings) -> Path:
    """Return the folder whose pictures set the thresholds unless --recalibrate names another."""
    return settings.category_dir / settings.calibration.folder / NORMAL


def measure_calibration(detector: Detector, pictures: ImageFolder, settings: Settings) -> Calibration:
    """Measure a calibration: `split` on pictures that nothing has learnt, `cross` on each without its own rows."""
    group, seed, crosses = distributed.group(), settings.model.seed, leaves_one_out(settings, len(pictures))
    unseen = unseen_pictures(settings, pictures)
    normal = pictures if crosses else unseen or pictures
    normal = normal.sample(calibration_size(len(pictures), len(unseen), settings), seed)
    learnt_from = pictures if crosses else pictures.without(normal.names()) or pictures
    memories, dependence = group.broadcast(learn_memories(detector, learnt_from, settings))
    references = {part: memory.reference for part, memory in memories.items()}
    places = {name: place for place, name in enumerate(learnt_from.names())}

    def references_for(name: str) -> Mapping[str, Reference]:
        if not crosses:
            return references
        related = torch.from_numpy(dependence.related(places[name], len(places)).nonzero()[0])
        return {part: memory.without(related) for part, memory in memories.items()}

    def measure(items: Sequence[Item], judge: Detector) -> list[Parts]:
        return parts_of_batch(judge, stack_pictures(items), [references_for(item.path) for item in items])

    judges = UnseenJudges.of(detector, settings)
    batches = map_batches(detector, normal, partial(judges.judge, measure), settings.model.num_workers, group)
    measured = list(count_progress(batches, len(normal), "calibrating"))
    anomalous = measure_anomalies(judges, normal, references_for, settings) if weighs_parts(settings) else []
    calibration = None
    if group.is_main:
        parts, sizes = [of_picture for _, of_picture in measured], Counter(item.size for item, _ in measured)
        calibration = build_calibration(detector, parts, references, normal.names(), anomalous)
        calibration = replace(calibration, picture_size=sizes.most_common(1)[0][0])
    calibration = group.broadcast(calibration)
    if not crosses:  # what was learnt from says nothing about the held-out pictures, but their scores do
        groups = named_groups(calibration.pictures, settings.calibration.groups)
        dependence = measure_named_groups(np.array(calibration.scores)[:, None], groups) if groups else Dependence()
    independent, method = dependence.independent(len(normal)), CROSS if crosses else SPLIT
    calibration = replace(calibration, method=method, held_out=len(unseen) > 0)
    return replace(calibration, independent=independent, dependence=dependence.found)


def build_calibration(
    detector: Detector,
    normal: Sequence[Parts],
    references: Mapping[str, Reference],
    names: Sequence[str] = (),
    anomalous: Sequence[Parts] = (),
) -> Calibration:
    """Return the calibration from the parts of normal pictures that the references have not learnt.

    The parts of copies with synthetic anomalies, if there are any, decide how much each part weighs.
    """

    def scored(maps: Tensor) -> Tensor:
        return detector.crop_maps(smooth(maps, detector.blur_sigma))

    maxima = torch.tensor([[scored(parts[part]).max() for part in reference.DISTANCES] for parts in normal])
    feature, pixel = mean_maxima(maxima)

    def maps_of(part: str, pictures: Sequence[Parts]) -> list[Tensor]:
        return [scored(resize_maps(parts[part], parts["pixel"].shape[-2:])) for parts in pictures]

    scales = {part: reference.measure_scale(maps_of(part, normal)) for part in detector.parts}
    if anomalous:
        maxima_of = [
            {part: [m.max().item() for m in maps_of(part, group)] for part in scales} for group in (normal, anomalous)
        ]
        weights = reference.measure_weights(*maxima_of)
        scales = {part: scale._replace(weight=weights[part]) for part, scale in scales.items()}
    predictions = [detector.assemble(parts, feature / pixel, scales) for parts in normal]
    pixels = pixel_quantiles(detector.crop_maps(prediction.anomaly).numpy() for prediction in predictions)
    order = sorted(range(len(normal)), key=lambda i: predictions[i].score)
    scores, pictures = tuple(predictions[i].score for i in order), tuple(names[i] for i in order if names)
    measured = Calibration(feature, pixel, scores, pixels, scales=scales, pictures=pictures)
    return replace(measured, references=dict(references), batch_size=detector.batch_size)


def measure_anomalies(
    judges: UnseenJudges,
    normal: ImageFolder,
    references_for: Callable[[str], Mapping[str, Reference]],
    settings: Settings,
) -> list[Parts]:
    """Return the parts of copies of some normal pictures, each copy with another kind of synthetic anomaly."""

    def measure(items: Sequence[Item], judge: Detector) -> list[list[Parts]]:
        return [list(measure_copies(item, judge)) for item in items]

    def measure_copies(item: Item, judge: Detector) -> Iterator[Parts]:
        pixels, own = to_pixels(item.picture), references_for(item.path)
        copies, _, _ = make_synthetic_anomalies(
            [pixels], len(ALL_DEFECTS), content_seed(item.picture, settings.model.seed)
        )
        for copy in copies:
            yield from parts_of_batch(judge, to_unit_range(copy)[None], [own])

    chosen = normal.sample(CHANGED_PICTURES, settings.model.seed)
    work, workers = partial(judges.judge, measure), settings.model.num_workers
    batches = map_batches(judges.detector, chosen, work, workers, distributed.group())
    changed = count_progress(batches, len(chosen), "weighing parts")
    return [parts for _, of_picture in changed for parts in of_picture]


def weighs_parts(settings: Settings) -> bool:
    return settings.score.weights == MEASURED and len(settings.score.parts or ()) > 1


def parts_of_batch(detector: Detector, pictures: Tensor, references: Sequence[Mapping[str, Reference]]) -> list[Parts]:
    """Return D_f, D_p and memory parts (1, 1, h, w) of each picture, by its own references, on the CPU."""
    comparison = detector.compare_batch(pictures, detector.picture_noise)
    measured = [detector.measure_parts(comparison.of_picture(i), own) for i, own in enumerate(references)]
    return [{part: maps.cpu() for part, maps in parts.items()} for parts in measured]


def learn_memories(
    detector: Detector, pictures: ImageFolder, settings: Settings
) -> tuple[dict[str, Learnt], Dependence]:
    """Return the detector's memories, learnt from normal pictures, and how these depend on each other."""
    kinds, seed, count = reference.descriptor_kinds(detector.parts), settings.model.seed, len(pictures)
    lengths = learn_lengths(detector, pictures, settings) if DIFFUSION in detector.parts else {}
    if not kinds:
        return lengths, Dependence()
    group, squares = distributed.group(), pictures.squares()
    area = sum(squares.values())
    per_square = reference.samples_per_square(area)
    judged = detector.region.select if detector.region else lambda maps: maps

    def sample_batch(items: Sequence[Item]) -> list[Parts]:
        batch = stack_pictures(items)
        described = {kind: judged(maps) for kind, maps in image_descriptors(detector, batch).items()}
        wanted = [per_square * squares[item.path] for item in items]
        return [
            {kind: reference.sample(maps[i], rows, content_seed(batch[i], seed)) for kind, maps in described.items()}
            for i, rows in enumerate(wanted)
        ]

    batches = map_batches(detector, pictures, sample_batch, settings.model.num_workers, group)
    samples = [of_picture for _, of_picture in count_progress(batches, count, "learning normal pictures")]
    if not group.is_main:
        return {}, Dependence()
    described = {kind: [of_picture[kind] for of_picture in samples] for kind in samples[0]}
    means = torch.stack([rows.mean(dim=0) for rows in described.get(reference.WHOLE, next(iter(described.values())))])
    dependence = measure_dependence(means.numpy(), pictures.names(), settings.calibration.groups, seed)
    return {**reference.build_memories(described, detector.parts, area, seed), **lengths}, dependence


def learn_lengths(detector: Detector, pictures: ImageFolder, settings: Settings) -> dict[str, Learnt]:
    """Return the length of residuals of RESIDUAL_PICTURES normal pictures at most; the main process has it."""

    def residuals_of_batch(items: Sequence[Item], judge: Detector) -> list[Tensor]:
        return list(judge.compare_batch(stack_pictures(items), judge.picture_noise).descriptors[RESIDUAL].cpu())

    chosen = pictures.sample(RESIDUAL_PICTURES, settings.model.seed)
    work, workers = partial(UnseenJudges.of(detector, settings).judge, residuals_of_batch), settings.model.num_workers
    batches = map_batches(detector, chosen, work, workers, distributed.group())
    residuals = [residual for _, residual in count_progress(batches, len(chosen), "measuring residuals")]
    if not residuals:
        return {}
    return {DIFFUSION: ResidualLength.learn(torch.cat([residual.flatten(1).T for residual in residuals]))}


def image_descriptors(detector: Detector, pictures: Tensor) -> dict[str, Tensor]:
    """Return the descriptors of pictures (B, C, H, W) by kind; nothing is reconstructed."""
    features = detector.networks.features(pictures.to(detector.device))
    return reference.describe_pictures(features, detector.parts, detector.region)


def placeholder_references(detector: Detector, picture: Tensor, area: int) -> dict[str, Reference]:
    """Return references as slow to use as those of an area, in squares, of pictures like this one (1, C, H, W)."""
    descriptors = image_descriptors(detector, picture)
    kinds = {part: kind for part, kind in reference.DESCRIBED_BY.items() if part in detector.parts}
    return {part: reference.placeholder(descriptors[kind].shape[1], area) for part, kind in kinds.items()}


def leaves_one_out(settings: Settings, pictures: int) -> bool:
    """Return whether each picture of train/good is compared with the memory of the others; one has no others."""
    return settings.calibration.method == CROSS and not settings.calibration.on_validation and pictures > 1


def calibration_size(pictures: int, unseen: int, settings: Settings) -> int:
    """Return the number of pictures that a calibration is measured on: of `pictures` in train/good, or of unseen."""
    measured = unseen or (max(1, pictures // 2) if settings.score.parts else pictures)
    return min(settings.calibration.pictures, pictures if leaves_one_out(settings, pictures) else measured)


def calibration_work(settings: Settings, pictures: int, unseen: int) -> tuple[int, int]:
    """Return how many pictures a calibration reconstructs, and how many of `pictures` in train/good it describes."""
    compared = calibration_size(pictures, unseen, settings)
    changed = min(CHANGED_PICTURES, compared) * len(ALL_DEFECTS) if weighs_parts(settings) else 0
    learns_all = settings.calibration.on_validation or leaves_one_out(settings, pictures)
    described = pictures if learns_all else pictures - compared
    return compared + changed, described if reference.descriptor_kinds(settings.score.parts or ()) else 0


def unseen_pictures(settings: Settings, pictures: ImageFolder) -> ImageFolder:
    """Return validation/good, or those of `pictures` that the weights have not seen in training and adaptation."""
    if settings.calibration.on_validation:
        return normal_splits(settings)[VALIDATION]
    folder, model, prefix = settings.checkpoint_folder, settings.model, checkpoint.FEATURES_PREFIX
    weights = [checkpoint.find_weights(folder, model.load_chp)]
    if adapted := checkpoint.latest_epoch(folder, prefix) if model.DA_chp == LATEST else model.DA_chp:
        weights.append(checkpoint.find_weights(folder, adapted, prefix))
    return pictures.only(set.intersection(*(set(checkpoint.held_out_names(path)) for path in weights)))
