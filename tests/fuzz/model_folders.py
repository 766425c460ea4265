"""Small valid model folders, changes of their files, and how commands use a folder before a run starts."""

from __future__ import annotations

import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from damage import damaged
from image_sets import Wrong
from outcomes import NUMBERS, ODD, mutated
from safetensors.torch import load_file, save_file
from tiny_edits import write_edits
from tiny_flux import write_chroma, write_flux, write_kontext
from tiny_flux_2 import write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_lumina_2 import write_lumina_2
from tiny_models import write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image

from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.job.launch import check
from redif_ray.job.preflight import preflight
from redif_ray.models.folder import component_folder
from redif_ray.models.headers import weight_files
from redif_ray.models.registry import fingerprint
from redif_ray.planning import factory
from redif_ray.planning.paths import absolute
from redif_ray.sample import draw

FEW = {write_dit: 8, write_unet: 8, write_edm: 4}  # families with the share of the inputs that each gets
TEXT = {write_sd: 4, write_sdxl: 1, write_sd3: 2}
MORE = (
    write_flux,
    write_chroma,
    write_kontext,
    write_flux_2_klein,
    write_krea_2,
    write_lumina_2,
    write_pixart,
    write_qwen_image,
    write_sana,
    write_z_image,
)
FAMILIES = FEW | TEXT | dict.fromkeys(MORE, 0.4)
KEYS = (
    "layers_per_block",
    "num_train_timesteps",
    "sample_size",
    "hidden_size",
    "vocab_size",
    "beta_schedule",
    "norm_num_groups",
)


@cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="redif-fuzz-")  # which goes with the process


@cache
def whole(write: Callable[[Path], Path]) -> Path:
    """The valid folder that a function writes, once a process."""
    return write(Path(tempfile.mkdtemp(dir=_room().name)) / "whole")


def copy_of(write: Callable[[Path], Path], root: Path, name: str = "model") -> Path:
    return shutil.copytree(whole(write), root / name)


def family(chance: random.Random) -> Callable[[Path], Path]:
    return chance.choices(list(FAMILIES), list(FAMILIES.values()))[0]


def configured(write: Any, folder: Path, root: Path, *overrides: str) -> Config:
    """A run with a teacher, the family of which `write` writes."""
    given = [f"teacher.model={folder}", f"run.root={root}/runs", "tracking.uri=off", "evaluation.judge=random-features"]
    given += ["evaluation.held_out=12", "evaluation.search=2", "conditions.held_out=0"]
    if write is write_edm:
        given += ["teacher.schedule=karras", "student.schedule=karras"]
    if write in MORE:
        given += [f"teacher.{edge}={32 if write is write_sana else 16}" for edge in ("height", "width")]
    if write is write_kontext:
        given.append(f"conditions.source={write_edits(root / 'edits', 4)}")
    elif write not in FEW:
        (root / "captions.txt").write_text("\n".join("abcdefgh"))
        given.append(f"conditions.source={root}/captions.txt")
    config: Config = load("smoke", [*given, *overrides])
    return config


def used(write: Any, folder: Path, root: Path, *overrides: str) -> None:
    """Do with a teacher what a run does: all checks, then a worker's part, which must work where the checks pass."""
    config = absolute(configured(write, folder, root, *overrides))
    check(config, resume=False)
    conditions = preflight(config)
    try:
        teacher = factory.model(config, None, "cpu")
        fingerprint(teacher)
        schedule = factory.teacher_schedule(teacher, config)
        images = draw(teacher, schedule, [0], [conditions.training[0]], 0, 1.0)
    except FloatingPointError as error:  # of weights that are finite and much too large; as the command line does
        raise UserError(str(error)) from error
    except UserError as error:
        raise Wrong(f"passed all checks, and then: {error}") from error
    if not bool(images.isfinite().all()):
        raise Wrong("passed all checks, and draws what is not finite")
    if not config.teacher.lora:
        check_weights(teacher.network.state_dict(), component_folder(folder, teacher.component))


def check_weights(loaded: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise Wrong where a loaded weight is not the one in the files."""
    for file in weight_files(folder):
        for name, value in load_file(file).items():
            if name in loaded and not torch.equal(loaded[name].float(), value.to(loaded[name].dtype).float()):
                raise Wrong(f"{name} is not what {file.name} holds")


def change_json(path: Path, chance: random.Random) -> str:
    """Change one or two things in a JSON file, or its text, and say what it holds now."""
    tree: Any = json.loads(path.read_text())
    if chance.random() < 0.1:
        path.write_bytes(damaged(path.read_bytes(), chance))
        return "other bytes"
    for _ in range(chance.choice((1, 1, 2))):
        tree = mutated(tree, chance, (*ODD, 3, 7, 8, 64, "epsilon", "SiLU", "fp16", [1, 2], [4, 4]))
    if isinstance(tree, dict) and chance.random() < 0.2:
        tree[chance.choice((*KEYS, *tree))] = chance.choice((*NUMBERS, 3, 5, None, [3], "x"))
    path.write_text(json.dumps(tree))
    return json.dumps(tree)[:200]


def change_weights(path: Path, chance: random.Random) -> str:
    """Change the header, the tensors or the bytes of a safetensors file, and say how."""
    if chance.random() < 0.3:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(
            mutated(json.loads(data[8 : 8 + size]), chance, (*ODD, "F16", "I64", "F4", "BOOL", [0, 4], 2))
        ).encode()
        said = chance.choice((len(header),) * 5 + (0, 2**63, size + 1))
        path.write_bytes(struct.pack("<Q", said) + header + data[8 + size :])
        return f"header {said}"
    if chance.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), chance))
        return "other bytes"
    tensors = load_file(path)
    name = chance.choice(sorted(tensors))
    value = tensors[name]
    action = chance.choice(
        ("half", "integers", "shape", "nan", "infinite", "remove", "more", "rename", "huge", "all", "bool", "f8")
    )
    if action == "remove":
        del tensors[name]
    elif action == "rename":
        tensors[f"{name}{chance.choice(('.x', '_', '.weight'))}"] = tensors.pop(name)
    elif action == "more":
        tensors[chance.choice(("x", "position_ids", "unet.x.weight", "lora_A.weight", ""))] = torch.zeros(2)
    elif action == "all":
        kind = chance.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8))
        tensors = {key: each.to(kind) for key, each in tensors.items()}
    else:
        changed = value.clone()
        if action in ("nan", "infinite", "huge") and changed.numel() and changed.is_floating_point():
            changed.view(-1)[chance.randrange(changed.numel())] = {
                "nan": torch.nan,
                "infinite": -torch.inf,
                "huge": 1e38,
            }[action]
        tensors[name] = {
            "half": changed.half(),
            "integers": changed.to(torch.int64),
            "shape": changed.reshape(-1)
            if chance.random() < 0.5
            else torch.cat([changed, changed])
            if changed.ndim
            else changed[None],
            "bool": changed.bool(),
            "f8": changed.to(torch.float8_e4m3fn),
        }.get(action, changed)
    save_file(tensors, path, chance.choice(({"format": "pt"}, {"format": "pt"}, {"format": "np"}, None)))
    return f"{action} {name}"


def share_out(path: Path, chance: random.Random) -> str:
    """Put the weights of a file into two shards with an index, which may be changed."""
    tensors, base = load_file(path), path.name.removesuffix(".safetensors")
    names = sorted(tensors)
    shards = {f"{base}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, path.parent / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    written = path.parent / f"{path.name}.index.json"
    written.write_text(json.dumps(index))
    if chance.random() < 0.8:
        path.unlink()
    return "shards" if chance.random() < 0.2 else f"shards, {change_json(written, chance)}"
