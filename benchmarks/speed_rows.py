"""What benchmarks/speed.py times: ours and the reference (benchmarks/plain.py) of each row, and of an ablation ours and ours without one change."""

from collections.abc import Callable
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
from benchmarks.plain import (
    EXTRACTOR,
    LEARNING_RATE,
    PRO_LIMIT,
    SCHEDULE,
    WEIGHT_DECAY,
    PlainAttention,
    PlainBlock,
    PlainDropout,
    PlainResNet,
    PlainSchedule,
    plain_adam,
    plain_pro,
    plain_reconstruct,
    plain_unet,
)
from dataset import ImageFolder, View
from ddad import NoisePredictor, NoiseSchedule, gaussian_draws, noise_loss, reconstruct
from detection.comparison import Networks, prepare_network
from feature_extractor import FeatureExtractor
from runtime.device import autocast, computes_in_bf16
from train import build_optimizer, ramped_average
from training.batches import shuffled_batches
from unet import UNet

# what --ablation takes away
ATTENTION, BLOCKS, DROPOUT, PRECISION = "attention", "enlarging, in place", "dropout masks", "precision"
OPTIMIZER, TABLE, MEMORY = "fused optimizer", "alpha_bar table", "kept memory"
PLAIN_FORMS = {
    "": (PlainAttention, PlainBlock, PlainDropout),
    ATTENTION: (PlainAttention,),
    BLOCKS: (PlainBlock,),
    DROPOUT: (PlainDropout,),
}
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}  # of a forward pass, beside the plain one in fp32


@dataclass(frozen=True)
class Row:
    """One line of the table: what is done, to how many pictures, by us and by the reference, how many operations it takes (0: not counted), and
    whether the reference keeps memory as we do."""

    name: str
    pictures: int
    ours: Callable[[], object]
    plain: Callable[[], object]
    operations: float = 0.0
    most: int | None = None  # repeats of what takes minutes
    plain_keeps_memory: bool = False


def network(kind: str, device: torch.device) -> tuple[UNet, int]:
    """(network with weights that are not zero, its picture's side)."""
    torch.manual_seed(0)
    size = 64 if kind == "DDAD-S" else 256
    unet = UNet(size, 32, heads=2, dropout=0.3) if kind == "DDAD-S" else UNet(size)
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return unet.to(device), size


def operations(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def training(kind: str, batch: int, device: torch.device, without: str = "", precision: str = "fp32") -> Row:
    unet, size = network(kind, device)
    plain = plain_unet(unet, PLAIN_FORMS.get(without, ())).train()
    ours = unet.train()
    if device.type == "cuda":  # as train.py has it
        ours = ours.to(memory_format=torch.channels_last)
        plain = plain.to(memory_format=torch.channels_last) if without else plain
    x_0 = torch.randn(batch, 3, size, size, device=device)

    def step_of(
        network: NoisePredictor, optimizer: torch.optim.Optimizer, schedule: NoiseSchedule
    ) -> Callable[[], None]:
        def step() -> None:
            t, noise = torch.randint(1000, (batch,), device=device), torch.randn_like(x_0)
            optimizer.zero_grad()
            noise_loss(network, x_0, t, noise, schedule).backward()
            optimizer.step()

        return step

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(network, "adam", LEARNING_RATE, WEIGHT_DECAY)

    fast = step_of(autocast(ours, precision, device), adam(ours), SCHEDULE)
    optimizer = plain_adam(plain) if without in ("", OPTIMIZER) else adam(plain)
    slow = step_of(plain, optimizer, PlainSchedule() if without in ("", TABLE) else SCHEDULE)
    name = named(f"training step, {kind} {size} px, batch {batch}", without, precision)
    return Row(name, batch, fast, slow, operations(fast), plain_keeps_memory=without not in ("", MEMORY))


def forward(kind: str, batch: int, device: torch.device, without: str = "", precision: str = "fp32") -> Row:
    unet, size = network(kind, device)
    plain = plain_unet(unet, PLAIN_FORMS.get(without, ())).eval()
    published = prepare_network(plain, device) if without in (ATTENTION, BLOCKS) else plain
    ours = autocast(prepare_network(unet, device), precision, device)
    x, t = torch.randn(batch, 3, size, size, device=device), torch.full((batch,), 100, device=device)
    fast, slow = torch.no_grad()(lambda: ours(x, t)), torch.no_grad()(lambda: published(x, t))
    torch.testing.assert_close(fast(), slow(), rtol=0, atol=TOLERANCE[precision], check_dtype=False)
    name = named(f"forward, {kind} {size} px, batch {batch}", without, precision)
    return Row(name, batch, fast, slow, operations(fast), plain_keeps_memory=without != "")


def named(row: str, without: str, precision: str) -> str:
    return f"{without}: {row}" if without else f"{row}, {precision}"


def layer4(device: torch.device) -> Row:
    ours, plain = prepare_network(FeatureExtractor(EXTRACTOR, "random"), device), prepare_network(PlainResNet(), device)
    x = torch.rand(1, 3, 256, 256, device=device) * 2 - 1
    fast, slow = torch.no_grad()(lambda: ours(x)), torch.no_grad()(lambda: plain(x))
    return Row(
        f"layer4 not computed: features, {EXTRACTOR} 256 px", 1, fast, slow, operations(fast), plain_keeps_memory=True
    )


def target_once(device: torch.device, draws: int = 4) -> Row:
    extractor = prepare_network(FeatureExtractor(EXTRACTOR, "random"), device)
    networks = Networks(nn.Identity(), extractor, SCHEDULE, w=3, start=250, skip=25, eta=1)
    x, rebuilt = torch.rand(1, 3, 256, 256, device=device), torch.rand(draws, 1, 3, 256, 256, device=device)

    def slow() -> None:
        for draw in rebuilt:
            networks.compared(x, x, draw[None])

    name = f"target's features once: distances of {draws} draws, {EXTRACTOR} 256 px"
    return Row(name, 1, lambda: networks.compared(x, x, rebuilt), slow, plain_keeps_memory=True)


def averaging(device: torch.device) -> Row:
    unet, _ = network("DDAD-S", device)
    ours, plain = (
        AveragedModel(unet, multi_avg_fn=ramped_average(0.999)),
        AveragedModel(unet, avg_fn=get_ema_avg_fn(0.999)),
    )
    fast, slow = (lambda: ours.update_parameters(unet)), (lambda: plain.update_parameters(unet))
    return Row("moving average at once, not weight by weight: DDAD-S", 1, fast, slow, plain_keeps_memory=True)


def whole_detection(kind: str, batch: int, device: torch.device) -> Row:
    """One draw of DDAD-10, features, and the map."""
    unet, size = network(kind, device)
    plain, plain_features = plain_unet(unet).eval(), PlainResNet().to(device).eval()
    networks = Networks(
        prepare_network(unet, device),
        prepare_network(FeatureExtractor(EXTRACTOR, "random"), device),
        SCHEDULE,
        w=3,
        start=250,
        skip=25,
        eta=1,
    )
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1

    def fast() -> Tensor:
        rebuilt = networks.reconstructions(x, gaussian_draws(x.shape, torch.Generator(device).manual_seed(0)))
        d_feature, d_pixel = networks.compared(x, x, rebuilt).distances.values()
        return smooth(combine(d_feature, d_pixel, 1.0), 4)

    @torch.no_grad()
    def slow() -> Tensor:
        x_0 = plain_reconstruct(plain, x, 3, 250, 25)
        d_feature = feature_distance(plain_features(x), plain_features(x_0), size)
        return smooth(combine(d_feature, pixel_distance(x_0, x), 1.0), 4)

    return Row(f"detection, {kind} {size} px, {EXTRACTOR}, batch {batch}", batch, fast, slow, operations(fast))


def reconstruction(kind: str, batch: int, device: torch.device) -> Row:
    unet, size = network(kind, device)
    plain, ours = plain_unet(unet).eval(), prepare_network(unet, device)
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1

    def fast() -> Tensor:
        draw = gaussian_draws(x.shape, torch.Generator(device).manual_seed(0))
        return reconstruct(ours, x, x, schedule=SCHEDULE, w=3, draw=draw)

    return Row(
        f"reconstruction, {kind} {size} px, batch {batch}",
        batch,
        fast,
        lambda: plain_reconstruct(plain, x, 3, 250, 25),
        operations(fast),
    )


def loading(count: int, side: int, folder: Path) -> Row:
    """The second epoch of PNG files: they are in memory, and only have to be cut, stacked and scaled."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "nut" / "train" / "good" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 200, side)[None, :, None] + rng.integers(0, 30, (side, side, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(path)
    pictures = ImageFolder(folder / "nut", "train", View(256))
    pixels = pictures.pixels(2)
    generator = torch.Generator().manual_seed(0)

    def slow() -> None:
        for index in torch.randperm(count).tolist():
            with Image.open(pictures.samples[index].picture) as opened:
                resized = opened.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
            torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(127.5).sub(1)

    return Row(
        f"second epoch of {count} PNG files of {side}²",
        count,
        lambda: list(shuffled_batches(pixels, 8, 256, generator)),
        slow,
    )


def measuring(count: int, side: int) -> Row:
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
        return float(roc_auc_score(masks.ravel(), maps.ravel())), plain_pro(maps, masks)

    np.testing.assert_allclose(fast(), slow(), atol=0.01)
    return Row(f"PRO and pixel AUROC of {count} maps {side}²", count, fast, slow, most=2)


def rows(ablation: bool, device: torch.device, folder: Path) -> dict[str, Callable[[], Row]]:
    """What makes each row, by name; the plain side of an ablation's rows is ours without one change."""
    return without_one(device) if ablation else against_plain(device, folder)


def against_plain(device: torch.device, folder: Path) -> dict[str, Callable[[], Row]]:
    reduced = {
        "training DDAD-S bf16": lambda: training("DDAD-S", 16, device, precision="bf16"),
        "training DDAD 256 bf16": lambda: training("DDAD", 2, device, precision="bf16"),
        "forward DDAD-S bf16": lambda: forward("DDAD-S", 16, device, precision="bf16"),
        "forward DDAD 256 bf16": lambda: forward("DDAD", 1, device, precision="bf16"),
    }
    return (reduced if computes_in_bf16(device) else {}) | {
        "training DDAD-S fp32": lambda: training("DDAD-S", 16, device),
        "training DDAD 256 fp32": lambda: training("DDAD", 2, device),
        "forward DDAD-S fp32": lambda: forward("DDAD-S", 16, device),
        "forward DDAD 256 fp32": lambda: forward("DDAD", 1, device),
        "reconstruction DDAD-S": lambda: reconstruction("DDAD-S", 16, device),
        "detection DDAD 256": lambda: whole_detection("DDAD", 1, device),
        "loading": lambda: loading(40, 900, folder),
        "metrics": lambda: measuring(83, 224),
    }


def without_one(device: torch.device) -> dict[str, Callable[[], Row]]:
    return {
        "training attention": lambda: training("DDAD-S", 16, device, ATTENTION),
        "training blocks": lambda: training("DDAD-S", 16, device, BLOCKS),
        "training dropout": lambda: training("DDAD-S", 16, device, DROPOUT),
        "training precision": lambda: training("DDAD-S", 16, device, PRECISION, "bf16"),
        "training optimizer": lambda: training("DDAD-S", 16, device, OPTIMIZER),
        "training alpha_bar": lambda: training("DDAD-S", 16, device, TABLE),
        "training memory": lambda: training("DDAD", 2, device, MEMORY),
        "forward attention": lambda: forward("DDAD-S", 16, device, ATTENTION),
        "forward blocks": lambda: forward("DDAD-S", 16, device, BLOCKS),
        "forward channels_last": lambda: forward("DDAD-S", 16, device, "channels_last"),
        "features layer4": lambda: layer4(device),
        "features target": lambda: target_once(device),
        "average": lambda: averaging(device),
    }
