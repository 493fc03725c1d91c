"""What benchmarks/speed.py times: two forms of the same work, one row each.

The rows of the reference table compare ours with plain forms (benchmarks/plain_forms.py). Those of the ablation table
compare ours with ours without one speed-up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import metrics
from anomaly_map import combine, feature_distance, pixel_distance, smooth
from benchmarks import plain_forms as forms
from benchmarks.plain_forms import EXTRACTOR, LEARNING_RATE, PRO_LIMIT, SCHEDULE, WEIGHT_DECAY
from dataset import ImageFolder, View
from ddad import NoisePredictor, NoiseSchedule, gaussian_draws, noise_loss, reconstruct
from detection.comparison import Networks
from feature_extractor import FeatureExtractor
from runtime.device import autocast, computes_in_bf16
from train import build_optimizer, ramped_average
from training.batches import shuffled_batches
from training.networks import prepare_network
from unet import UNet

DDAD_S, DDAD = "DDAD-S", "DDAD"
REFERENCE, ABLATION = "reference", "ablation"  # tables
# the speed-ups that rows of the ablation table leave out
ATTENTION, BLOCKS, DROPOUT, PRECISION = "attention", "enlarging, in place", "dropout masks", "precision"
OPTIMIZER, ALPHA_BAR, MEMORY = "fused optimizer", "alpha_bar table", "kept memory"
CHANNELS_LAST = "channels_last"
PLAIN_WITHOUT: Mapping[str, tuple[type[nn.Module], ...]] = {  # plain modules of the slower side
    "": forms.PLAIN_MODULES,
    ATTENTION: (forms.PlainAttention,),
    BLOCKS: (forms.PlainBlock,),
    DROPOUT: (forms.PlainDropout,),
}
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}  # of a forward pass, beside the plain one in fp32


@dataclass(frozen=True)
class TimedPair:
    """The same work on `pictures` pictures in two forms.

    `operations` are those of `ours` (0: not counted). `most_repeats` bounds the repeats of what takes minutes.
    """

    name: str
    pictures: int
    ours: Callable[[], object]
    plain: Callable[[], object]
    operations: float = 0.0
    most_repeats: int | None = None
    plain_keeps_memory: bool = False


RowMakers = dict[str, Callable[[], TimedPair]]  # by the name of the row


def row_makers(table: str, device: torch.device, folder: Path) -> RowMakers:
    """Return what makes each row of a table; `folder` gets pictures to load."""
    return reference_rows(device, folder) if table == REFERENCE else ablation_rows(device)


def reference_rows(device: torch.device, folder: Path) -> RowMakers:
    reduced: RowMakers = {
        "training DDAD-S bf16": lambda: time_training(DDAD_S, 16, device, precision="bf16"),
        "training DDAD 256 bf16": lambda: time_training(DDAD, 2, device, precision="bf16"),
        "forward DDAD-S bf16": lambda: time_forward(DDAD_S, 16, device, precision="bf16"),
        "forward DDAD 256 bf16": lambda: time_forward(DDAD, 1, device, precision="bf16"),
    }
    return (reduced if computes_in_bf16(device) else {}) | {
        "training DDAD-S fp32": lambda: time_training(DDAD_S, 16, device),
        "training DDAD 256 fp32": lambda: time_training(DDAD, 2, device),
        "forward DDAD-S fp32": lambda: time_forward(DDAD_S, 16, device),
        "forward DDAD 256 fp32": lambda: time_forward(DDAD, 1, device),
        "reconstruction DDAD-S": lambda: time_reconstruction(DDAD_S, 16, device),
        "detection DDAD 256": lambda: time_detection(DDAD, 1, device),
        "loading": lambda: time_loading(40, 900, folder),
        "metrics": lambda: time_metrics(83, 224),
    }


def ablation_rows(device: torch.device) -> RowMakers:
    return {
        "training attention": lambda: time_training(DDAD_S, 16, device, ATTENTION),
        "training blocks": lambda: time_training(DDAD_S, 16, device, BLOCKS),
        "training dropout": lambda: time_training(DDAD_S, 16, device, DROPOUT),
        "training precision": lambda: time_training(DDAD_S, 16, device, PRECISION, "bf16"),
        "training optimizer": lambda: time_training(DDAD_S, 16, device, OPTIMIZER),
        "training alpha_bar": lambda: time_training(DDAD_S, 16, device, ALPHA_BAR),
        "training memory": lambda: time_training(DDAD, 2, device, MEMORY),
        "forward attention": lambda: time_forward(DDAD_S, 16, device, ATTENTION),
        "forward blocks": lambda: time_forward(DDAD_S, 16, device, BLOCKS),
        "forward channels_last": lambda: time_forward(DDAD_S, 16, device, CHANNELS_LAST),
        "features layer4": lambda: time_features(device),
        "features target": lambda: time_distances(device),
        "average": lambda: time_average(device),
    }


def time_training(kind: str, batch: int, device: torch.device, without: str = "", precision: str = "fp32") -> TimedPair:
    unet, size = seeded_unet(kind, device)
    plain = forms.plain_unet(unet, PLAIN_WITHOUT.get(without, ())).train()
    ours = unet.train()
    if device.type == "cuda":  # as train.py has it
        ours = ours.to(memory_format=torch.channels_last)
        plain = plain.to(memory_format=torch.channels_last) if without else plain
    x_0 = torch.randn(batch, 3, size, size, device=device)

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(network, "adam", LEARNING_RATE, WEIGHT_DECAY)

    fast = training_step(autocast(ours, precision, device), adam(ours), SCHEDULE, x_0)
    optimizer = forms.plain_adam(plain) if without in ("", OPTIMIZER) else adam(plain)
    schedule = forms.PlainSchedule() if without in ("", ALPHA_BAR) else SCHEDULE
    slow = training_step(plain, optimizer, schedule, x_0)
    name = row_name(f"training step, {kind} {size} px, batch {batch}", without, precision)
    keeps_memory = without not in ("", MEMORY)
    return TimedPair(name, batch, fast, slow, count_operations(fast), plain_keeps_memory=keeps_memory)


def training_step(
    network: NoisePredictor, optimizer: torch.optim.Optimizer, schedule: NoiseSchedule, x_0: Tensor
) -> Callable[[], None]:
    """Return a function that takes one training step on the pictures x_0 (B, C, H, W)."""

    def step() -> None:
        t, noise = torch.randint(1000, (len(x_0),), device=x_0.device), torch.randn_like(x_0)
        optimizer.zero_grad()
        noise_loss(network, x_0, t, noise, schedule).backward()
        optimizer.step()

    return step


def time_forward(kind: str, batch: int, device: torch.device, without: str = "", precision: str = "fp32") -> TimedPair:
    unet, size = seeded_unet(kind, device)
    plain: nn.Module = forms.plain_unet(unet, PLAIN_WITHOUT.get(without, ())).eval()
    if without in (ATTENTION, BLOCKS):
        plain = prepare_network(plain, device)
    ours = autocast(prepare_network(unet, device), precision, device)
    x, t = torch.randn(batch, 3, size, size, device=device), torch.full((batch,), 100, device=device)
    fast, slow = torch.no_grad()(lambda: ours(x, t)), torch.no_grad()(lambda: plain(x, t))
    torch.testing.assert_close(fast(), slow(), rtol=0, atol=TOLERANCE[precision], check_dtype=False)
    name = row_name(f"forward, {kind} {size} px, batch {batch}", without, precision)
    return TimedPair(name, batch, fast, slow, count_operations(fast), plain_keeps_memory=without != "")


def time_features(device: torch.device) -> TimedPair:
    """Time features without and with layer4, which nothing uses."""
    ours, plain = (
        prepare_network(FeatureExtractor(EXTRACTOR, "random"), device),
        prepare_network(forms.PlainResNet(), device),
    )
    x = torch.rand(1, 3, 256, 256, device=device) * 2 - 1
    fast, slow = torch.no_grad()(lambda: ours(x)), torch.no_grad()(lambda: plain(x))
    name = f"layer4 not computed: features, {EXTRACTOR} 256 px"
    return TimedPair(name, 1, fast, slow, count_operations(fast), plain_keeps_memory=True)


def time_distances(device: torch.device, draws: int = 4) -> TimedPair:
    """Time distances of several draws, with the target's features computed once and for each draw."""
    extractor = prepare_network(FeatureExtractor(EXTRACTOR, "random"), device)
    networks = ddad_networks(nn.Identity(), extractor)
    x, rebuilt = torch.rand(1, 3, 256, 256, device=device), torch.rand(draws, 1, 3, 256, 256, device=device)

    def slow() -> None:
        for draw in rebuilt:
            networks.compare(x, x, draw[None])

    name = f"target's features once: distances of {draws} draws, {EXTRACTOR} 256 px"
    return TimedPair(name, 1, lambda: networks.compare(x, x, rebuilt), slow, plain_keeps_memory=True)


def time_average(device: torch.device) -> TimedPair:
    """Time the moving average of the weights, of all at once and one by one."""
    unet, _ = seeded_unet(DDAD_S, device)
    ours = AveragedModel(unet, multi_avg_fn=ramped_average(0.999))
    plain = AveragedModel(unet, avg_fn=get_ema_avg_fn(0.999))
    fast, slow = (lambda: ours.update_parameters(unet)), (lambda: plain.update_parameters(unet))
    return TimedPair("moving average at once, not weight by weight: DDAD-S", 1, fast, slow, plain_keeps_memory=True)


def time_detection(kind: str, batch: int, device: torch.device) -> TimedPair:
    """Time one draw of DDAD-10, the features and the map."""
    unet, size = seeded_unet(kind, device)
    plain, plain_features = forms.plain_unet(unet).eval(), forms.PlainResNet().to(device).eval()
    extractor = prepare_network(FeatureExtractor(EXTRACTOR, "random"), device)
    networks = ddad_networks(prepare_network(unet, device), extractor)
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1

    def fast() -> Tensor:
        rebuilt = networks.reconstruct(x, gaussian_draws(x.shape, torch.Generator(device).manual_seed(0)))
        d_feature, d_pixel = networks.compare(x, x, rebuilt).distances.values()
        return smooth(combine(d_feature, d_pixel, 1.0), 4)

    @torch.no_grad()
    def slow() -> Tensor:
        x_0 = forms.plain_reconstruct(plain, x, 3, 250, 25)
        d_feature = feature_distance(plain_features(x), plain_features(x_0), size)
        return smooth(combine(d_feature, pixel_distance(x_0, x), 1.0), 4)

    name = f"detection, {kind} {size} px, {EXTRACTOR}, batch {batch}"
    return TimedPair(name, batch, fast, slow, count_operations(fast))


def time_reconstruction(kind: str, batch: int, device: torch.device) -> TimedPair:
    unet, size = seeded_unet(kind, device)
    plain, ours = forms.plain_unet(unet).eval(), prepare_network(unet, device)
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1

    def fast() -> Tensor:
        draw = gaussian_draws(x.shape, torch.Generator(device).manual_seed(0))
        return reconstruct(ours, x, x, schedule=SCHEDULE, w=3, draw=draw)

    name = f"reconstruction, {kind} {size} px, batch {batch}"
    return TimedPair(name, batch, fast, lambda: forms.plain_reconstruct(plain, x, 3, 250, 25), count_operations(fast))


def time_loading(count: int, side: int, folder: Path) -> TimedPair:
    """Time the second epoch of PNG files, which ours has in memory and only crops, stacks and scales."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "nut" / "train" / "good" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 200, side)[None, :, None] + rng.integers(0, 30, (side, side, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(path)
    pictures = ImageFolder(folder / "nut", "train", View(256))
    pixels = pictures.pixels(2)
    generator = torch.Generator().manual_seed(0)

    def fast() -> object:
        return list(shuffled_batches(pixels, 8, View(256), generator))

    def slow() -> None:
        for index in torch.randperm(count).tolist():
            with Image.open(pictures.samples[index].picture) as opened:
                resized = opened.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
            torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(127.5).sub(1)

    return TimedPair(f"second epoch of {count} PNG files of {side}²", count, fast, slow)


def time_metrics(count: int, side: int) -> TimedPair:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((count, side, side), np.float32), np.zeros((count, side, side), bool)
    for index in range(0, count, 2):
        top, left = rng.integers(0, side - 40, 2)
        masks[index, top : top + 30, left : left + 25] = True
    maps[masks] += 0.3

    def fast() -> tuple[float, float]:
        ranking = metrics.rank_anomalies(maps, masks)
        return ranking.auroc(), ranking.pro(PRO_LIMIT)

    def slow() -> tuple[float, float]:
        return float(roc_auc_score(masks.ravel(), maps.ravel())), forms.plain_pro(maps, masks)

    np.testing.assert_allclose(fast(), slow(), atol=0.01)
    return TimedPair(f"PRO and pixel AUROC of {count} maps {side}²", count, fast, slow, most_repeats=2)


def seeded_unet(kind: str, device: torch.device) -> tuple[UNet, int]:
    """Return a network without weights that are all zero, and the side of its pictures."""
    torch.manual_seed(0)
    size = 64 if kind == DDAD_S else 256
    unet = UNet(size, 32, heads=2, dropout=0.3) if kind == DDAD_S else UNet(size)
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return unet.to(device), size


def ddad_networks(unet: nn.Module, extractor: nn.Module) -> Networks:
    return Networks(unet, extractor, SCHEDULE, w=3, start=250, skip=25, eta=1)


def row_name(work: str, without: str, precision: str) -> str:
    return f"{without}: {work}" if without else f"{work}, {precision}"


def count_operations(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
