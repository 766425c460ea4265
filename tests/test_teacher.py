from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_device
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from scipy import stats

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.data.images import ImageSet, write_parquet
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.teacher import training as module
from redif_ray.teacher.batches import Batches, learning_rate
from redif_ray.teacher.config import TeacherConfig, TeacherError
from redif_ray.teacher.network import build_network
from redif_ray.teacher.progress import shown
from redif_ray.teacher.training import train

ALPHAS = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod


def images(count: int = 20, channels: int = 1, edge: int = 8, labelled: bool = True) -> ImageSet:
    pixels = noise.bits(count * channels * edge**2, Stream.CALIBRATION, seed=0).astype(np.uint8)
    labels, classes = (np.arange(count) % 3, ("cat", "dog", "eel")) if labelled else (None, ())
    return ImageSet(pixels.reshape(count, channels, edge, edge), labels, classes)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TeacherConfig]:
    write_parquet(tmp_path / "images.parquet", images())

    def make(**changes: Any) -> TeacherConfig:
        small = {
            "data": str(tmp_path / "images.parquet"),
            "out": str(tmp_path / "out"),
            "patch": 4,
            "layers": 1,
            "heads": 1,
            "head_dim": 8,
            "steps": 56,
            "batch": 4,
            "warmup": 3,
            "ema": 0.9,
            "checkpoint_every": 7,
            "lr": 1e-2,
        }
        return TeacherConfig(**{**small, **changes})

    return make


class Cut(BaseException):
    """Ctrl-C, from the report at step 50: the last checkpoint is that of step 49."""


def cut(row: dict[str, float]) -> None:
    raise Cut


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.long
def test_on_another_device_it_trains_alike(config: Any, tmp_path: Path) -> None:
    """Cut short there after a checkpoint, and resumed."""
    here = weights(train(config(out=str(tmp_path / "here"))))
    with pytest.raises(Cut):
        train(config(device=second_device.NAME), report=cut)
    there = weights(train(config(device=second_device.NAME), resume=True))
    apart, size = (
        torch.cat([w.flatten() for w in found]).norm()
        for found in ([there[name] - here[name] for name in here], list(here.values()))
    )
    assert apart < 0.01 * size  # 56 steps of Adam, of two roundings


@pytest.mark.slow
def test_a_training_that_was_cut_short_ends_with_the_same_weights(config: Any, tmp_path: Path) -> None:
    whole = weights(train(config(out=str(tmp_path / "whole"))))
    with pytest.raises(Cut):
        train(config(), report=cut)
    assert not (tmp_path / "out").exists()
    assert load_checkpoint(tmp_path / "out.training" / "last")[1]["step"] == 49
    steps: list[float] = []
    out = train(config(), resume=True, report=lambda row: steps.append(row["step"]))
    assert out == tmp_path / "out" and steps == [56]
    assert equal(weights(out), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.parquet", "out", "whole"]


@pytest.mark.slow
def test_the_folder_is_one_that_diffusers_loads(config: Any) -> None:
    rows: list[dict[str, float]] = []
    out = train(config(steps=60), report=rows.append)
    network: Any = DiTTransformer2DModel.from_pretrained(out / "transformer")
    assert equal(network.state_dict(), weights(out)) and network.config.sample_size == 8
    assert network.config.num_embeds_ada_norm == 3  # and diffusers adds the one for "no class"
    scheduler: Any = DDPMScheduler.from_pretrained(out / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.clip_sample is False
    assert torch.equal(scheduler.alphas_cumprod, ALPHAS)
    index = json.loads((out / "model_index.json").read_text())
    assert index["id2label"] == {"0": "cat", "1": "dog", "2": "eel"} and index["_class_name"] == "DiTPipeline"
    assert [row["step"] for row in rows] == [50, 60] and rows[-1]["eta_seconds"] == 0
    assert all(row["loss"] > 0 and row["images_per_second"] > 0 for row in rows)


def parts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The raw weights and their average in a training's last checkpoint."""
    tensors, _ = load_checkpoint(folder / "last")
    return unpack("network", tensors), unpack("ema", tensors)


@pytest.mark.slow
def test_the_average_follows_the_weights_with_a_decay_that_warms_up(config: Any, tmp_path: Path) -> None:
    """Step index i: average = d average + (1 - d) weights, d = min(ema, (1 + i) / (10 + i))."""
    for every in (48, 49):
        with pytest.raises(Cut):
            train(config(checkpoint_every=every, out=str(tmp_path / str(every))), report=cut)
    before, (raw, after) = parts(tmp_path / "48.training")[1], parts(tmp_path / "49.training")
    for name, average in after.items():
        expected = 49 / 58 * before[name].double() + 9 / 58 * raw[name].double()
        assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_saved_is_the_average(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the last checkpoint and before the folder is written; the resumed run only writes it."""

    def killed(*arguments: Any) -> None:
        raise Cut

    last = config(steps=14)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(module, "save_folder", killed)
        train(last)
    raw, average = parts(tmp_path / "out.training")
    saved = weights(train(last, resume=True))
    assert all(torch.equal(saved[name], average[name]) for name in average)
    assert not all(torch.equal(saved[name], raw[name]) for name in average)


@pytest.mark.parametrize(("labelled", "channels"), [(False, 1), (True, 3)])
def test_images_without_labels_and_in_colour(labelled: bool, channels: int, config: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", images(channels=channels, labelled=labelled))
    out = train(config(steps=2, parameterization="epsilon"))
    network: Any = DiTTransformer2DModel.from_pretrained(out / "transformer")
    assert network.config.in_channels == channels and network.config.num_embeds_ada_norm == (3 if labelled else 1)
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.training"])
def test_what_exists_is_not_overwritten(name: str, config: Any, tmp_path: Path) -> None:
    if name == "out":
        (tmp_path / "out").mkdir()
    else:
        with pytest.raises(Cut):
            train(config(), report=cut)
    before = {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
    assert issubclass(TeacherError, UserError)
    with pytest.raises(TeacherError, match=f"{tmp_path}/{name} (exists|holds an unfinished training; pass --resume)"):
        train(config())
    assert {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_resume_needs_the_same_training(config: Any, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"out.training holds no checkpoint to resume; leave --resume out"):
        train(config(), resume=True)
    with pytest.raises(Cut):
        train(config(), report=cut)
    with pytest.raises(TeacherError, match=r"another configuration \(lr: 0.01 then, 0.02 now; seed: 0 then, 4 now\)"):
        train(config(lr=2e-2, seed=4), resume=True)
    (tmp_path / "out.training" / "last").rename(tmp_path / "out.training" / ".last.old")  # killed while replacing it
    assert train(config(threads=1), resume=True).exists()


def test_a_loss_that_is_not_finite_stops(config: Any, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"the loss is (nan|inf) at step \d+; lower lr \(now 1e\+30\)"):
        train(config(lr=1e30, warmup=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("shape", "changes"), [((8, 6), {}), ((8, 8), {"patch": 3})])
def test_images_that_do_not_divide_into_patches(
    shape: tuple[int, int], changes: dict[str, int], config: Any, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "images.parquet", ImageSet(np.zeros((2, 1, *shape), np.uint8), None, ()))
    with pytest.raises(TeacherError, match=rf"images are \({shape[0]}, {shape[1]}\) pixels; expected squares .*patch="):
        train(config(**changes))


def test_an_untrained_network_predicts_zero_and_blocks_pass_their_input(config: Any) -> None:
    """adaLN-zero: every gate and the output start at zero; the rest does not."""
    network = build_network(config(layers=2), images()).eval()
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    output = network(x, torch.tensor([3, 900]), class_labels=torch.tensor([0, 3])).sample
    assert output.shape == x.shape and not output.any()
    tokens = network.pos_embed(x)
    for block in network.transformer_blocks:
        assert torch.equal(block(tokens, timestep=torch.tensor([3, 900]), class_labels=torch.tensor([0, 3])), tokens)
    assert tokens.std() > 0


def test_the_first_weights_depend_on_the_seed_alone(config: Any) -> None:
    state = torch.random.get_rng_state()
    one, again, other = (build_network(config(seed=s), images()).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(one, again) and not equal(one, other)


def test_every_epoch_shows_each_image_once(config: Any) -> None:
    batches = Batches(images(20), config(batch=8), ALPHAS)
    order = np.concatenate([batches.indices(step) for step in range(15)])
    epochs = order.reshape(6, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6
    fresh = Batches(images(20), config(batch=8), ALPHAS)
    assert all(np.array_equal(fresh.indices(step), order[8 * step : 8 * step + 8]) for step in (14, 2, 7))


def examples(config: TeacherConfig, steps: int = 1) -> dict[str, torch.Tensor]:
    batches = Batches(images(), config, ALPHAS)
    found = [batches(step) for step in range(steps)]
    return {key: torch.cat([batch[key] for batch in found]) for key in found[0]}


@pytest.mark.parametrize("parameterization", ["v_prediction", "epsilon"])
def test_an_example_and_its_target_give_back_image_and_noise(parameterization: str, config: Any) -> None:
    """x = alpha x0 + sigma eps; v = alpha eps - sigma x0, hence x0 = alpha x - sigma v and eps = sigma x + alpha v."""
    small = config(batch=20, parameterization=parameterization)
    found = {k: v.double() for k, v in examples(small).items()}
    square = ALPHAS.double()[found["t"].long()][:, None, None, None]
    alpha, sigma, x, target = square.sqrt(), (1 - square).sqrt(), found["x"], found["target"]
    if parameterization == "v_prediction":
        x0, eps = alpha * x - sigma * target, sigma * x + alpha * target
    else:
        eps = target
        x0 = (x - sigma * eps) / alpha
    rows = Batches(images(), small, ALPHAS).indices(0)
    expected = torch.from_numpy(images().images[rows]).double() / 255 * 2 - 1
    well = (square > 1e-3).flatten()  # where x still tells the image
    assert well.sum() >= 18 and torch.allclose(x0[well], expected[well], atol=1e-3)
    assert abs(float(eps.mean())) < 4 / math.sqrt(eps.numel())
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    assert float(expected.min()) < -0.98 and float(expected.max()) > 0.98


def test_diffusers_makes_the_same_examples(config: Any) -> None:
    scheduler: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    small = config(batch=20)
    found = examples(small)
    x0 = torch.from_numpy(images().images[Batches(images(), small, ALPHAS).indices(0)]).float() / 255 * 2 - 1
    eps = examples(config(batch=20, parameterization="epsilon"))["target"]
    assert torch.allclose(scheduler.add_noise(x0, eps, found["t"]), found["x"], atol=1e-6)
    assert torch.allclose(scheduler.get_velocity(x0, eps, found["t"]), found["target"], atol=1e-6)


def test_levels_cover_the_range_evenly_and_labels_drop_at_the_given_rate(config: Any) -> None:
    small = config(batch=20, label_dropout=0.3)
    found = examples(small, steps=100)
    t, labels = found["t"].numpy(), found["labels"].numpy()
    assert t.min() >= 0 and t.max() <= 999 and t.dtype == np.int64
    assert all(np.array_equal(np.sort(batch // 50), np.arange(20)) for batch in t.reshape(100, 20))  # one in each slice
    assert stats.kstest(t + 0.5, "uniform", args=(0, 1000)).pvalue > 1e-3
    rate = float(np.mean(labels == 3))
    assert abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    batches = Batches(images(), small, ALPHAS)
    rows = np.concatenate([batches.indices(step) for step in range(100)])
    assert np.array_equal(labels[labels < 3], (rows % 3)[labels < 3])
    assert (examples(config(label_dropout=0.0))["labels"] < 3).all()


def test_every_random_number_of_an_example_follows_its_step_and_the_seed(config: Any) -> None:
    batches = Batches(images(), config(), ALPHAS)
    first, second = batches(0), batches(1)
    other = Batches(images(), config(seed=1), ALPHAS)(0)
    again = Batches(images(), config(), ALPHAS)(1)
    assert equal(second, again)
    assert not torch.equal(first["x"], second["x"]) and not torch.equal(first["x"], other["x"])
    assert not torch.equal(first["t"], second["t"]) and not torch.equal(first["t"], other["t"])


def test_the_learning_rate_warms_up_and_falls_to_zero(config: Any) -> None:
    found = [learning_rate(step, config(steps=104, warmup=4, lr=2.0)) for step in range(105)]
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert found[54] == pytest.approx(1.0) and found[104] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(found[4:]))


@pytest.mark.slow
def test_one_image_is_learnt(config: Any, tmp_path: Path) -> None:
    """Predicting zero costs E v^2 = alpha^2 + sigma^2 E x0^2 = 1 on a black image; the network must do much better."""
    write_parquet(tmp_path / "images.parquet", ImageSet(np.zeros((2, 1, 8, 8), np.uint8), None, ()))
    losses: list[float] = []
    train(config(steps=100, head_dim=16, batch=8), report=lambda row: losses.append(row["loss"]))
    assert losses[-1] < 0.4 < losses[0] < 1, losses


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_leaves_a_checkpoint_and_ends_alike(config: Any, tmp_path: Path) -> None:
    whole = weights(train(config(out=str(tmp_path / "whole"))))
    asked = iter([False] * 30 + [True])
    assert train(config(), stopped=lambda: next(asked)) is None
    assert load_checkpoint(tmp_path / "out.training" / "last")[1]["step"] == 31
    assert equal(weights(train(config(), resume=True)), whole)


@pytest.mark.slow
def test_samples_are_drawn_beside_each_checkpoint_from_the_average(config: Any, tmp_path: Path) -> None:
    """Untrained weights predict v = 0, so x stays the noise times the product of cosines: grey, and not black."""
    with pytest.raises(Cut):
        train(config(checkpoint_every=20), report=cut)
    drawn = sorted((tmp_path / "out.training" / "samples").iterdir())
    assert [path.name for path in drawn] == ["step-000020.png", "step-000040.png"]
    first, second = (np.asarray(Image.open(path)) for path in drawn)
    assert first.shape == (3 * 8, 4 * 8) and not np.array_equal(first, second)  # a row for each class


@pytest.mark.slow
def test_a_resume_needs_the_same_images(config: Any, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(config(), report=cut)
    write_parquet(tmp_path / "images.parquet", images(count=21))
    with pytest.raises(TeacherError, match=r"was started with other images in .*images.parquet; restore them"):
        train(config(), resume=True)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named_before_the_data_are_read(device: str, config: Any) -> None:
    with pytest.raises(UserError, match=f"device={device}: .*; expected cpu, or a device that this machine has"):
        train(config(device=device, data="/nowhere"))


def test_a_terminal_shows_a_bar_and_the_time_left_and_a_file_shows_lines() -> None:
    row = {"step": 50.0, "steps": 200.0, "loss": 0.5, "images_per_second": 1234.0, "eta_seconds": 90.0}
    told = "step 50/200  loss 0.5000  1,234 images/s  0:01:30 left"
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        with shown(console) as show, console.status("reading"):
            pass
        with shown(console) as show:
            show(row)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert told in text and ("\u2501" in text) == terminal
