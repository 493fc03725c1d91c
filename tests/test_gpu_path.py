"""The code path of a GPU, on a stand-in without values: whole runs, and what the inner loops make the host wait for."""

import os
import signal

import pytest
import torch
from fake_device import fake_cuda
from golden_weights import normal
from small_training import small_unet

import main
import train
from config.load import load_settings
from dataset import ImageFolder, View
from ddad import NoiseSchedule, noise_loss
from detection.detector import load_detector
from domain_adaptation import adaptation_loop, check_adaptation, prepare_adaptation
from runtime.device import autocast
from training.pace import Pace

DEVICE = torch.device("cuda:0")
ON_DEVICE = ("model.device=cuda:0", "speed.compile=False")
ONE_BATCH = ("data.DA_batch_size=8", "data.test_batch_size=16")  # each operation lasts as long for one picture


@pytest.fixture
def on_gpu(tiny_config, tmp_path, capsys):
    """Return a function that runs main.py on the stand-in: on_gpu("--train") → (exit code, standard output, device)."""

    def run(*arguments: str):
        capsys.readouterr()
        with fake_cuda() as device:
            code = main.main([*ONE_BATCH, *arguments, "--config", str(tiny_config), "--traceback", *ON_DEVICE])
        return code, capsys.readouterr().out, device

    return run


def test_all_stages_run(on_gpu, tmp_path, category):
    code, out, _ = on_gpu("--train", "--domain_adaptation", "model.DA_chp=1")
    assert code == 0 and "weights in bfloat16" in out and "adapted timm/test_resnet" in out
    for protocol in ("per_image", "published"):
        folder = tmp_path / protocol
        settings = (f"score.protocol={protocol}", "model.DA_chp=1")
        assert on_gpu("--detection", *settings, "--output", str(folder))[0] == 0
        assert (folder / "report.html").exists()
    new = ("--input", str(category / "test"), "--output", str(tmp_path / "input"))
    code, out, _ = on_gpu("--detection", *new, "data.test_batch_size=auto")
    assert code == 0 and "6 pictures in" in out


def test_stopped_training_resumes(on_gpu, monkeypatch):
    fsync = os.fsync

    def stop_at_first_weights(descriptor):
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # the loop has begun
            monkeypatch.setattr(os, "fsync", fsync)
            signal.raise_signal(signal.SIGINT)
        fsync(descriptor)

    settings = ("model.epochs=3", "training.checkpoint_epochs=1", "training.ema=0.9", "speed.precision=fp16")
    monkeypatch.setattr(os, "fsync", stop_at_first_weights)
    assert on_gpu("--train", *settings)[0] == 130
    code, out, _ = on_gpu("--train", "--resume", *settings)
    assert code == 0 and "continuing after step" in out


def test_memory_banks_are_learnt_and_used(on_gpu, tmp_path):
    parts = ("score.parts=[pixel,memory,wide_memory,whole_memory,patch_memory]", "--output", str(tmp_path / "results"))
    assert on_gpu("--train", "--detection", *parts)[0] == 0


def test_the_network_compiles_as_one_graph():
    """What a GPU runs compiled has no breaks, and computes the same loss and gradients."""
    unet, noise = small_unet(dropout=0.1).eval(), normal(1, 2, 3, 16, 16)
    network = autocast(unet, "bf16", torch.device("cpu"))
    compiled, results = torch.compile(network, backend="aot_eager", fullgraph=True), []
    for predict in (network, compiled):
        unet.zero_grad()
        loss = noise_loss(predict, noise, torch.tensor([3, 700]), noise, NoiseSchedule())
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in unet.parameters())])
    torch.testing.assert_close(*results)


STEP_SETTINGS = {
    "as published": (),
    "all that a step may do": (
        "training.ema=0.9", "training.clip=1", "training.accumulate=2", "training.warmup_steps=3",
        "training.schedule=cosine", "training.optimizer=adamw", "model.dropout=0.1",
        "speed.activation_checkpointing=True",
        "training.augmentation=rotate",
    ),
    "prediction of x0": ("model.predicts=x0",),
    "a smaller UNet": ("model.unet_size=16", "model.attention_sizes=[8]"),
    "fp16": ("speed.precision=fp16", "training.clip=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", STEP_SETTINGS)
def test_a_training_step_never_waits(tiny_config, name):
    settings = load_settings(tiny_config, [*ON_DEVICE, *STEP_SETTINGS[name]])
    pixels = train.plan_training(settings).pictures.pixels(0)
    with fake_cuda() as device:
        pace = Pace.of_steps(4)
        trainer = train.build_trainer(settings, pace, DEVICE)
        steps = train.training_loop(trainer, pixels, pace, settings)
        next(steps)  # builds the tables of the noise schedule
        next(steps)
        device.waits.clear()
        device.products.clear()
        next(steps)
        assert device.waits == {("training/batches.py", "shuffled_order", "copy"): 1}  # of a new epoch
        next(steps)
    assert device.waits.total() == 1
    assert set(device.products) == {torch.float16 if name == "fp16" else torch.bfloat16}


def test_an_adaptation_step_never_waits(tiny_config, run_main):
    run_main("--train")
    settings = load_settings(tiny_config, [*ON_DEVICE, "data.DA_batch_size=4"])
    with fake_cuda() as device:
        steps = adaptation_loop(prepare_adaptation(settings, check_adaptation(settings)))
        next(steps)
        device.waits.clear()
        next(steps)
    assert not device.waits


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_detection_waits_for_each_batch_not_for_each_picture(tiny_config, trained, precision, dtype):
    settings = load_settings(tiny_config, [*ON_DEVICE, "score.draws=2", f"speed.detection_precision={precision}"])
    view = View(**settings.view_arguments())
    pictures = torch.stack([item.picture for item in ImageFolder(settings.category_dir, "test", view)])
    with fake_cuda() as device:
        detector, *_ = load_detector(settings, settings.checkpoint_folder, DEVICE)
        detector.predict_batch(pictures[:2], detector.picture_noise)
        device.products.clear()
        waits = []
        for batch in (pictures[:2], pictures[:4]):
            device.waits.clear()
            detector.predict_batch(batch, detector.picture_noise)
            waits.append(dict(device.waits))
    assert waits[0] == waits[1]
    assert waits[0] == {
        ("detection/detector.py", "compare_batch", "copy"): 1,  # to the device
        ("ddad.py", "picture_draws", "copy"): 1,  # the pixels, whose hash is the seed
        ("detection/detector.py", "predict_batch", "copy"): 3,  # D_f, D_p and the reconstructions
    }
    assert set(device.products) == {dtype}
