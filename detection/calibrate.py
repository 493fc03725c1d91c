"""Measure a detector's calibration on normal pictures: references, scales, the balance and thresholds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anomaly_map import resize_maps, smooth
from config.keys import LATEST, Settings
from dataset import VALIDATION, ImageFolder, picture_fingerprint
from ddad import content_seed
from detection import reference
from detection.calibration_file import CALIBRATION, load_calibration, save_calibration, save_region
from detection.detector import Detector, Parts, calibration_inputs, map_batches, split_parts
from detection.reference import Reference
from detection.threshold import Calibration, mean_maxima, pixel_quantiles
from runtime import distributed
from runtime.errors import MissingFileError
from runtime.progress import count_progress
from training import checkpoint


def calibrate(detector: Detector, settings: Settings) -> Detector:
    """Return the detector with its folder's calibration, or with a new one if that is missing or stale."""
    folder = settings.checkpoint_folder
    stored = distributed.group().broadcast(load_calibration(folder))
    calibration = current_calibration(detector, settings, stored)
    if settings.model.save_model and calibration != stored:
        try:
            save_calibration(folder, calibration)
            if detector.region:
                save_region(folder, detector.region)
        except OSError as error:
            print(f"the calibration is not kept: {error}")
    print(calibration.describe(detector.false_positive_rate), flush=True)
    return replace(detector, calibration=calibration)


def current_calibration(detector: Detector, settings: Settings, stored: Calibration | None) -> Calibration:
    """Return the stored calibration, or measure one where networks, settings or normal pictures have changed."""
    folder, inputs, values = settings.checkpoint_folder, calibration_inputs(detector, settings), settings.as_dict()
    stale = stored.staleness(inputs) if stored else f"no {CALIBRATION} of this version in {folder}"
    valid = replace(stored, settings=values) if stored and not stale else None  # keys without effect may differ
    try:
        pictures = ImageFolder(settings.category_dir, "train", detector.view)
    except FileNotFoundError as error:
        if valid:
            return valid
        problem = f"{folder / CALIBRATION} can't be used ({stale})"
        raise MissingFileError(f"{problem}, nor measured again: {error}") from error
    validation = unseen_pictures(settings, pictures).samples if settings.calibration.split == VALIDATION else []
    normals = "{files}, {hash}".format(**picture_fingerprint(pictures.samples + validation))
    if valid and valid.normals in (None, normals):
        return valid
    changed = f"the pictures of train/good{' or validation/good' if validation else ''} have changed"
    print(f"calibration is to be measured: {stale or changed}", flush=True)
    calibration = measure_calibration(detector, pictures, settings)
    return replace(calibration, made_with=inputs, settings=values, normals=normals)


def measure_calibration(detector: Detector, pictures: ImageFolder, settings: Settings) -> Calibration:
    """Measure a calibration on unseen pictures, else on some of train/good. Learn references from the others."""
    group, seed, workers = distributed.group(), settings.model.seed, settings.model.num_workers
    unseen = unseen_pictures(settings, pictures)
    count = calibration_size(len(pictures), len(unseen), settings.calibration.pictures, detector.parts)
    normal = (unseen or pictures).sample(count, seed)
    references = group.broadcast(learn_references(detector, pictures.without(normal.names()) or pictures, settings))
    batches = map_batches(detector, normal, lambda batch: parts_of_batch(detector, batch, references), workers, group)
    parts = [picture_parts for _, picture_parts in count_progress(batches, len(normal), "calibrating")]
    calibration = build_calibration(detector, parts, references) if group.is_main else None
    return replace(group.broadcast(calibration), held_out=len(unseen) > 0)


def build_calibration(detector: Detector, normal: Sequence[Parts], references: Mapping[str, Reference]) -> Calibration:
    """Return the calibration from the parts of held-out normal pictures, inside the scored area."""

    def scored(maps: Tensor) -> Tensor:
        return detector.crop_maps(smooth(maps, detector.blur_sigma))

    maxima = torch.tensor([[scored(parts[part]).max() for part in reference.DISTANCES] for parts in normal])
    feature, pixel = mean_maxima(maxima)
    scales = {}
    for part in detector.parts:
        maps = [scored(resize_maps(parts[part], parts["pixel"].shape[-2:])) for parts in normal]
        scales[part] = reference.measure_scale(maps)
    predictions = [detector.assemble(parts, feature / pixel, scales) for parts in normal]
    scores = tuple(sorted(prediction.score for prediction in predictions))
    pixels = pixel_quantiles(detector.crop_maps(prediction.anomaly).numpy() for prediction in predictions)
    bank, size = dict(references), detector.batch_size
    return Calibration(feature, pixel, scores, pixels, True, {}, {}, scales=scales, references=bank, batch_size=size)


def parts_of_batch(detector: Detector, pictures: Tensor, references: Mapping[str, Reference]) -> list[Parts]:
    """Return D_f, D_p and memory parts (1, 1, h, w) of each picture, on the CPU."""
    parts = detector.measure_parts(detector.compare_batch(pictures, detector.picture_noise), references)
    return split_parts({part: maps.cpu() for part, maps in parts.items()})


def learn_references(detector: Detector, pictures: ImageFolder, settings: Settings) -> dict[str, Reference]:
    """Return the references of the detector's memory parts, learnt from normal pictures."""
    if not reference.descriptor_kinds(detector.parts):
        return {}
    group, seed, count = distributed.group(), settings.model.seed, reference.samples_per_picture(len(pictures))
    judged = detector.region.select if detector.region else lambda maps: maps

    def sample_batch(batch: Tensor) -> list[Parts]:
        described = {kind: judged(maps) for kind, maps in image_descriptors(detector, batch).items()}
        return [
            {kind: reference.sample(maps[i], count, content_seed(batch[i], seed)) for kind, maps in described.items()}
            for i in range(len(batch))
        ]

    batches = map_batches(detector, pictures, sample_batch, settings.model.num_workers, group)
    samples = [of_picture for _, of_picture in count_progress(batches, len(pictures), "learning normal pictures")]
    if not group.is_main:
        return {}
    described = {kind: [of_picture[kind] for of_picture in samples] for kind in samples[0]}
    return reference.build_references(described, detector.parts, seed)


def image_descriptors(detector: Detector, pictures: Tensor) -> dict[str, Tensor]:
    """Return the descriptors of pictures (B, C, H, W) by kind; nothing is reconstructed."""
    features = detector.networks.features(pictures.to(detector.device))
    return reference.describe_pictures(features, detector.parts, detector.region)


def placeholder_references(detector: Detector, picture: Tensor, pictures: int) -> dict[str, Reference]:
    """Return references as slow to use as those learnt from `pictures` pictures like this one (1, C, H, W)."""
    descriptors = image_descriptors(detector, picture)
    kinds = {part: kind for part, kind in reference.DESCRIBED_BY.items() if part in detector.parts}
    return {part: reference.placeholder(descriptors[kind].shape[1], pictures) for part, kind in kinds.items()}


def calibration_size(pictures: int, unseen: int, most: int, parts: Collection[str]) -> int:
    """Return the number of pictures of train/good that a calibration is measured on."""
    return min(most, unseen or (max(1, pictures // 2) if parts else pictures))


def calibration_work(parts: Collection[str], learnt: int, held_out: int, most: int) -> tuple[int, int]:
    """Return how many pictures a calibration reconstructs, at most `most`, and how many it only describes."""
    compared = calibration_size(learnt + held_out, held_out, most, parts)
    return compared, learnt + held_out - compared if reference.descriptor_kinds(parts) else 0


def unseen_pictures(settings: Settings, pictures: ImageFolder) -> ImageFolder:
    """Return validation/good, or the pictures that the weight files name as unseen in training and adaptation."""
    if settings.calibration.split == VALIDATION:
        return ImageFolder(settings.category_dir, VALIDATION, pictures.view)
    folder, model, prefix = settings.checkpoint_folder, settings.model, checkpoint.FEATURES_PREFIX
    weights = [checkpoint.find_weights(folder, model.load_chp)]
    if adapted := checkpoint.latest_epoch(folder, prefix) if model.DA_chp == LATEST else model.DA_chp:
        weights.append(checkpoint.find_weights(folder, adapted, prefix))
    return pictures.only(set.intersection(*(set(checkpoint.held_out_names(path)) for path in weights)))
