"""What a run needs: counted on networks without numbers, against counts on real ones and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import real_sizes_2025
import torch
from cases import mostly_long
from real_sizes import (
    dit_xl_2,
    edm_imagenet_64,
    flux_dev,
    flux_kontext,
    stable_diffusion_15,
    stable_diffusion_35_medium,
    stable_diffusion_xl,
)
from safetensors import safe_open
from tiny_pipelines import FAMILIES, write_sd, write_sd3

from redif_ray.cluster.nodes import nodes
from redif_ray.config import Config, load
from redif_ray.config.roles import Term
from redif_ray.job import requirements
from redif_ray.models.discriminator import Discriminator
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import make_student, trainable
from redif_ray.planning import memory, weight_bytes
from redif_ray.planning.activations import decode_and_back
from redif_ray.planning.disk import disk
from redif_ray.planning.gpu_memory import fullest_gpu_mb
from redif_ray.planning.host_memory import main_memory_mb
from redif_ray.planning.memory import Footprint, Footprints, footprints
from redif_ray.planning.peak import peak_mb


def config(teacher: Path | str, *overrides: str) -> Config:
    found: Config = load("smoke", [f"teacher.model={teacher}", *overrides])
    return found


def numbers(*networks: Any) -> int:
    return sum(t.numel() * t.element_size() for n in networks for t in (*n.parameters(), *n.buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(FAMILIES, lambda name: name in ("dit", "sd")))
def test_weights_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    """Text encoders and VAE are held by reward workers alone, and a VAE by a learner for DRaFT."""
    folder = FAMILIES[name](tmp_path / "m")
    found, model = footprints(config(folder)), load_model(folder)
    network = numbers(model.network) / 1e6
    model.decode(torch.zeros(1, *model.latent_shape))
    decoder = numbers(*model.parts.values()) / 1e6
    model.encode(["a caption" if model.takes_captions else 0 if model.num_classes else None])
    parts = numbers(*model.parts.values()) / 1e6
    assert (0 < decoder < parts) == model.takes_captions
    own = sum(p.numel() for p in model.network.parameters())
    assert found.trained == own and found.image == torch.Size(model.image_shape).numel()
    assert found.roles["reward"].weights == pytest.approx(network + parts)
    assert found.roles["learner"].weights == found.roles["rollout"].weights == pytest.approx(network + 4 * own / 1e6)
    assert found.roles["learner"].training == pytest.approx(12 * own / 1e6)
    drafting = footprints(config(folder, "method=draft", "learner.ema=0.9")).roles["learner"]
    assert drafting.weights == pytest.approx(network + 4 * own / 1e6 + decoder)
    assert drafting.training == pytest.approx(16 * own / 1e6)


FLUX = f"teacher.family={Path(__file__).parents[1] / 'flux_family.py'}:load"
REAL: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "sd15_coco_5step": (stable_diffusion_15, []),
    "sdxl_4step_lora": (stable_diffusion_xl, []),
    "sd35_4step_lora": (stable_diffusion_35_medium, []),
    "flux": (flux_dev, [FLUX, "teacher.height=null", "teacher.width=null"]),
    "edm_imagenet64_4step": (edm_imagenet_64, []),
    "dit_xl_4step": (dit_xl_2, []),
    "z_image_4step_lora": (real_sizes_2025.z_image, []),
    "flux2_klein_4step_lora": (real_sizes_2025.flux_2_klein_4b, []),
    "qwen_image_4step_lora": (real_sizes_2025.qwen_image, []),
    "krea_2_4step_lora": (real_sizes_2025.krea_2, []),
    "sana_4step_lora": (real_sizes_2025.sana_1600m, []),
    "flux1_dev_4step_lora": (flux_dev, []),
    "flux1_kontext_4step_lora": (flux_kontext, []),
}


def in_headers(folder: Path, bits: int) -> float:
    """MB of a network's weights, as the headers of its files tell, in floats of so many bits."""
    values = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            values += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return values * bits / 8e6


@pytest.mark.slow
@pytest.mark.parametrize("recipe", mostly_long(REAL, lambda name: name == "sdxl_4step_lora"))
def test_weights_of_real_size_are_those_of_the_headers(recipe: str, tmp_path: Path) -> None:
    """All networks are in the recipe's precision, the VAE too where it is bfloat16, and adapters come on top."""
    write, given = REAL[recipe]
    folder = write(tmp_path / "m")
    own: Config = load("sd35_4step_lora" if recipe == "flux" else recipe, [f"teacher.model={folder}", *given])
    own = own.model_copy(update={"reward": own.reward.model_copy(update={"terms": {"mse": Term()}})})
    bits = 32 if own.networks.precision == "float32" else 16
    component = teacher_outline(own.teacher).component
    network = in_headers(folder / component, bits)
    assert own.networks.precision != "float16"
    beside = sum(in_headers(part, bits) for part in folder.iterdir() if part.is_dir() and part.name != component)
    found = footprints(own, activations=False)
    adapters = 4 * found.trained / 1e6
    assert found.roles["reward"].weights == pytest.approx(network + beside, rel=0.02)
    assert found.roles["rollout"].weights == pytest.approx(network + adapters, rel=0.02)


@pytest.mark.slow
def test_no_weight_is_read(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "m")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert footprints(config(folder)).trained > 0


@pytest.mark.slow
def test_files_of_another_dtype_are_held_beside_the_network_that_is_made_of_them(tmp_path: Path) -> None:
    """On CPUs a worker and the export hold files of 16 bits beside a network of 32; a GPU gets the network alone."""
    folder, network = stable_diffusion_15(tmp_path / "m"), 4 * 859.5
    plain, half = (
        footprints(config(folder, *more), activations=False) for more in ((), ("networks.precision=float16",))
    )
    card = footprints(config(folder, "rollout.gpus=1"), activations=False).roles["rollout"]
    assert plain.roles["rollout"].start == plain.export == pytest.approx(1.5 * network, rel=0.02)
    assert half.export == plain.export  # the exported student is float32
    assert (half.roles["rollout"].start, card.start) == (
        pytest.approx(network / 2, rel=0.1),
        pytest.approx(network, rel=0.1),
    )


@pytest.mark.slow
def test_adapters_and_sixteen_bits(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "m")
    lora = "student.lora={rank: 2, targets: [to_q]}"
    whole, adapted = footprints(config(folder)), footprints(config(folder, lora))
    half = footprints(config(folder, lora, "networks.precision=bfloat16"))
    student = make_student(load_model(folder), config(folder, lora).student.lora)
    assert adapted.trained == sum(p.numel() for p in trainable(student).values()) < whole.trained / 10
    assert half.roles["learner"].training == adapted.roles["learner"].training
    assert half.roles["reward"].weights == pytest.approx(adapted.roles["reward"].weights / 2, rel=0.01)
    model: Any = load_model(folder)
    vae = sum(p.numel() for p in model.part("vae").parameters()) * 4 / 1e6  # which float16 might overflow
    kept = footprints(config(folder, lora, "networks.precision=float16")).roles["reward"].weights
    assert kept == pytest.approx(half.roles["reward"].weights + vae / 2, rel=0.01)
    assert 0.4 < half.roles["learner"].activations / adapted.roles["learner"].activations < 0.65


def saved_mb(call: Callable[[], torch.Tensor], network: torch.nn.Module) -> tuple[torch.Tensor, float]:
    """Return the value of a call, and the MB that autograd saves for its backward pass beside the weights."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = call()
    return value, sum(saved.values()) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_long(["dit", "unet", "edm", "sd", "sd3"], lambda name: name in ("dit", "sd", "sd3"))
)
def test_activations_are_what_a_real_backward_pass_holds(name: str, tmp_path: Path) -> None:
    """At least what autograd saves of a real one, and not much more; linear in the pairs; less with checkpointing."""
    folder = FAMILIES[name](tmp_path / "m")
    student = make_student(load_model(folder), config(folder).student.lora)
    condition = "a caption" if student.takes_captions else 0 if student.num_classes else None
    x, encoded = torch.zeros(16, *student.latent_shape), student.encode([condition] * 16)
    kept, expected = saved_mb(lambda: student.predict(x, student.process.noisiest(), encoded).x0, student.network)
    assert kept.requires_grad

    def activations(*overrides: str) -> float:
        return footprints(config(folder, *overrides)).roles["learner"].activations

    found = activations("learner.microbatch=16")
    assert 0.9 * expected < found < 1.8 * expected
    assert 1.7 * found < activations("learner.microbatch=32") < 2.05 * found  # a part is the weights' alone
    recomputed = activations("learner.microbatch=16", "learner.activation_checkpointing=true")
    assert recomputed <= (1.0 if name == "dit" else 0.95) * found


@pytest.mark.slow
def test_a_gradient_through_the_decoder_is_counted_where_it_is_taken(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "m")
    model: Any = load_model(folder)
    vae = model.part("vae")
    latents = torch.zeros(16, *model.latent_shape, requires_grad=True)
    decoded, expected = saved_mb(lambda: model.decode(latents), vae)
    assert decoded.requires_grad

    def activations(role: str, *overrides: str) -> float:
        return footprints(config(folder, "learner.microbatch=16", *overrides)).roles[role].activations

    weightless = teacher_outline(config(folder).teacher)
    assert expected < peak_mb(lambda: decode_and_back(weightless, 16)) < 1.8 * expected
    assert activations("learner", "method=draft") >= peak_mb(lambda: decode_and_back(weightless, 16))
    few = ("method=output", "rollout={siblings: 2, unit_groups: 1}", "evaluation.batch=1", "teacher.batch=1")
    one = peak_mb(lambda: decode_and_back(weightless, 1))
    assert activations("reward", *few) >= one
    assert activations("reward", *few, "output.sampled=true") < one


@pytest.mark.slow
@pytest.mark.parametrize("rank", mostly_long([0, 2], lambda rank: rank == 0))
def test_a_second_network_is_counted(rank: int, tmp_path: Path) -> None:
    """Its weights, gradients and moments in the learner, and in each checkpoint all but the gradients."""
    folder = write_sd(tmp_path / "m")
    lora = f"{{rank: {rank}, targets: [to_q]}}"
    second = ("method=distribution_matching", f"distribution_matching.lora={lora}", "warm_start.rounds=0")
    alone = ("method=straight", "output.groups=48", "warm_start.rounds=0")
    network = make_student(load_model(folder), config(folder, f"student.lora={lora}").student.lora)
    trained = sum(p.numel() for p in trainable(network).values())
    one, other = (footprints(config(folder, *given)).roles["learner"] for given in (second, alone))
    assert one.weights + one.training - other.weights - other.training == pytest.approx(16 * trained / 1e6, abs=0.1)
    model, kept = teacher_outline(config(folder).teacher), load("smoke").checkpoint.keep + 3
    written = [disk(config(folder, *given), model).run for given in (second, alone)]
    assert written[0] - written[1] == kept * 12 * trained


@pytest.mark.slow
def test_an_earlier_student_and_its_encoder_are_counted(tmp_path: Path) -> None:
    """The weights as they were in the learner and in each checkpoint, and the VAE that makes latents of images."""
    folder = write_sd(tmp_path / "m")
    given = ("student.lora={rank: 2, targets: [to_q]}", "warm_start.rounds=0")
    one, other = (
        footprints(config(folder, *given, f"method={method}")).roles["learner"] for method in ("consistency", "redif")
    )
    trained = footprints(config(folder, *given)).trained
    vae = numbers(load_model(folder).part("vae"))
    assert one.training - other.training == pytest.approx(4 * trained / 1e6, abs=0.01)
    assert one.weights - other.weights == pytest.approx(vae / 1e6, rel=1e-6)
    model, kept = teacher_outline(config(folder).teacher), load("smoke").checkpoint.keep + 3
    written = [disk(config(folder, *given, f"method={method}"), model).run for method in ("progressive", "redif")]
    assert written[0] - written[1] == kept * 4 * trained


@pytest.mark.slow
def test_gradients_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are part of `training`, so they are there before activations are counted."""
    seen: list[bool] = []
    monkeypatch.setattr(
        memory,
        "train",
        lambda student, *_: seen.extend(p.grad is not None for p in trainable(student).values()),
    )
    footprints(config("fashion-mnist"))
    assert seen and all(seen)


def test_the_peak_is_of_what_lives_at_once() -> None:
    weight = torch.empty(10**6, device="meta")

    def call() -> None:
        assert weight.view(1000, 1000).t().shape == (1000, 1000)  # as old as the weight
        first = torch.empty(1000, device="meta")  # 4 kB
        second = first + 1  # 8 kB
        del first
        third = second[:10] * 2  # views are free
        del second
        torch.cat([third] * 150)

    assert peak_mb(call) == pytest.approx(0.008)


def test_attention_holds_no_matrix_of_weights() -> None:
    query = torch.empty(1, 2, 1000, 8, device="meta", requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    peak = peak_mb(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert peak < 2 * 1000 * 1000 * 4 / 1e6 / 10
    assert torch.nn.functional.scaled_dot_product_attention is attend


ROLES = {"rollout": Footprint(100, 0, 50), "reward": Footprint(300, 0, 100), "learner": Footprint(100, 200, 700)}


@pytest.mark.parametrize(
    ("overrides", "together"),
    [
        (["rollout.gpus=1", "reward.gpus=1", "learner.gpus=1"], ["learner"]),
        (["rollout.gpus=1", "reward.gpus=1"], ["reward"]),
        (["rollout.gpus=0.5", "reward.gpus=0.5"], ["rollout", "reward"]),
        (["rollout.gpus=0.25", "rollout.max_workers=4"], ["rollout"] * 4),
        (["rollout.gpus=0.4", "reward.gpus=0.4", "rollout.max_workers=3"], ["reward", "rollout"]),
        (["rollout.gpus=0.5", "reward.gpus=0.25", "reward.max_workers=2"], ["rollout", "reward", "reward"]),
    ],
)
def test_the_fullest_gpu(overrides: list[str], together: list[str]) -> None:
    """Each worker brings its process's share of CUDA along."""
    found = fullest_gpu_mb(config("fashion-mnist", *overrides), ROLES)
    assert found == pytest.approx(sum(ROLES[role].total + memory.OVERHEAD_MB for role in together))


def test_those_that_take_turns_are_not_added_up() -> None:
    shares = ["rollout.gpus=0.25", "reward.gpus=0.25", "learner.gpus=0.5"]
    every = sum(one.total for one in ROLES.values()) + 3 * memory.OVERHEAD_MB
    beside, turns = (config("fashion-mnist", *shares, f"pipeline.colocate={offload}") for offload in ("false", "true"))
    assert fullest_gpu_mb(beside, ROLES) == pytest.approx(every)
    others = ROLES["rollout"].total + ROLES["reward"].total
    assert fullest_gpu_mb(turns, ROLES) == pytest.approx(every - others)
    kept = sum(one.weights + one.training for one in ROLES.values())
    found = Footprints(ROLES, 10**6, 0, 1000, 0.0)
    assert main_memory_mb(turns, found) - main_memory_mb(beside, found) == pytest.approx(kept)


@pytest.mark.slow
@pytest.mark.parametrize(("uri", "copies"), [("off", 1), ("http://127.0.0.1:5000", 2)])
def test_the_disk_of_an_export(tmp_path: Path, uri: str, copies: int) -> None:
    """What is copied of the teacher's folder and the network in float32, once more for MLflow; nothing else of it."""
    teacher = write_sd(tmp_path / "m", dtype=torch.float16)
    tracked, found = config(teacher, f"tracking.uri={uri}"), Footprints(ROLES, 10**6, 10**6, 1000, 4.0)
    before = requirements.disk_mb(tracked, found)
    (teacher / "checkpoint.safetensors").write_bytes(bytes(10**6))
    (teacher / "vae" / "old.bin").write_bytes(bytes(10**6))
    (teacher / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(bytes(10**6))
    (teacher / "vae" / "more.safetensors").write_bytes(bytes(10**6))
    assert requirements.disk_mb(tracked, found) == before
    (teacher / "vae" / "more.txt").write_bytes(bytes(10**6))
    assert requirements.disk_mb(tracked, found) - before == pytest.approx(copies)
    assert requirements.disk_mb(tracked, replace(found, network=2 * 10**6)) - before == pytest.approx(5 * copies)


@pytest.mark.slow
def test_what_is_too_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Footprints(ROLES | {"rollout": replace(ROLES["rollout"], weights=1e9)}, 10**6, 10**6, 1000, 4.0)

    def needs(*overrides: str) -> dict[str, requirements.Need]:
        run = config("fashion-mnist", *overrides)
        return {need.what: need for need in requirements.needs(run, found, nodes(run))}

    few = needs()
    assert not few["main memory"].met and few["disk"].met and few["logical CPUs"].met and "GPUs" not in few
    gpus = needs("rollout.gpus=64")
    assert not gpus["GPUs"].met and gpus["GPUs"].needed == 64 and gpus["main memory"].met


@pytest.mark.slow
def test_the_demo_by_measurement() -> None:
    """Five workers and five other processes: 5.6 GB at their peak, as `make demo` was measured."""
    demo: Config = load("fashion_mnist")
    assert 4500 < main_memory_mb(demo, footprints(demo)) < 6500


@pytest.mark.slow
def test_the_batch_of_a_round_and_the_sums_over_ranks_are_counted() -> None:
    """The demo's rounds have 16 x 16 rows and four steps: five states and the teacher's four jumps from them."""

    def of(*overrides: str) -> Footprint:
        return footprints(load("fashion_mnist", overrides), activations=False).roles["learner"]

    alone, two, card = of(), of("learner.workers=2"), of("learner.gpus=1")
    config = load("fashion_mnist")
    rows, steps = config.rollout.groups * config.rollout.siblings, config.student.steps
    jumps = steps if config.learner.anchor.weight else 0
    least, most = (4 * rows * 28 * 28 * states / 1e6 for states in (steps + 1 + jumps, 2 * steps + 1 + jumps + 1))
    assert least <= alone.batch <= most and two.batch == pytest.approx(alone.batch / 2)
    weights = alone.training / 4  # gradients, two moments and the average
    assert two.training == pytest.approx(alone.training + weights) and card.training == alone.training


@pytest.mark.slow
def test_a_learned_reward_is_counted() -> None:
    """Its weights at both, its gradients and two moments at the learner, and what a microbatch of it holds."""

    def of(*overrides: str) -> dict[str, Footprint]:
        return footprints(load("fashion_mnist", overrides)).roles

    without, small, large = of(), *(of(f"reward.terms.discriminator.options.width={width}") for width in (64, 512))
    mb = sum(p.numel() for p in Discriminator((1, 28, 28), width=64).parameters()) * 4e-6
    assert small["reward"].weights - without["reward"].weights == pytest.approx(mb)
    assert small["learner"].weights - without["learner"].weights == pytest.approx(mb)
    assert small["learner"].training - without["learner"].training == pytest.approx(3 * mb)
    first_map = 64 * 512 * 14 * 14 * 4e-6
    assert large["learner"].activations > max(2 * first_map, without["learner"].activations)
    assert small["rollout"] == without["rollout"]


@pytest.mark.slow
def test_a_rank_of_a_sharded_learner_needs_its_share(tmp_path: Path) -> None:
    """SD3 has two blocks: both are gathered, and the rest, with their gradients. A teacher is there to be pulled to."""
    folder = write_sd3(tmp_path / "m")
    shared = ("learner.fsdp=true", "rollout.groups=8", "learner.ema=0.9")
    model = load_model(folder)
    own = sum(p.numel() for p in model.network.parameters()) * 4 / 1e6
    for ranks in (2, 8):
        found = footprints(config(folder, f"learner.workers={ranks}", *shared)).roles["learner"]
        assert found.training == pytest.approx(4 * own / ranks, rel=0.01)
        assert found.weights == pytest.approx(own / ranks + 2 * own, rel=0.02)
    pulled = footprints(config(folder, f"learner.workers={ranks}", *shared, "learner.regulariser.kind=kl"))
    assert pulled.roles["learner"].weights == pytest.approx(found.weights + own / ranks, rel=0.02)
    whole = footprints(config(folder, "learner.ema=0.9")).roles["learner"]
    assert found.start == whole.weights < whole.total


@pytest.mark.slow
def test_blocks_are_gathered_two_at_a_time(tmp_path: Path) -> None:
    student = make_student(load_model(write_sd(tmp_path / "m")), config("fashion-mnist").student.lora)
    everything = 2 * sum(p.numel() for p in student.network.parameters()) * 4
    assert everything / 5 < weight_bytes._gathered(student) < everything * 0.9


@pytest.mark.slow
def test_a_run_without_rounds_has_footprints() -> None:
    """A run that only evaluates has none."""
    found = footprints(config("fashion-mnist", "warm_start.rounds=0", "learner.rounds=0"))
    assert found.roles["reward"].activations > 0
