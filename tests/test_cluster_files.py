"""cluster.yaml and configs/kuberay as far as they can be checked without a cloud: fields, versions, room for a run."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from kuberay_fields import ClusterSpec, RayCluster, RayJob, VolumeClaim
from ray.autoscaler._private.util import prepare_config, validate_config

from redif_ray.cluster.connect import needed
from redif_ray.config import Config, load

CHECKOUT = Path(__file__).parents[1]
KUBERAY = CHECKOUT / "configs" / "kuberay"
Groups = dict[str, tuple[int, dict[str, float]]]  # by name: nodes at most, and what each offers


def tree(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does before it asks the cloud for anything."""
    found = prepare_config(copy.deepcopy(config))
    found.setdefault("cluster_synced_files", [])
    validate_config(found)
    return found


def command(path: Path) -> Config:
    """The configuration of the run that a file names: of a job's entrypoint, or of the command in its header."""
    text = re.sub(r"^#", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "jobs/distill.py" in line)
    return of_entrypoint(line)


def of_entrypoint(text: str) -> Config:
    words = shlex.split(text)
    at = next(i for i, word in enumerate(words) if word.endswith("jobs/distill.py"))
    found: Config = load(words[at + 1], [*words[at + 2 :], "ray.address=auto"])
    return found


def launcher_groups() -> Groups:
    config = tree(CHECKOUT / "cluster.yaml")
    types = config["available_node_types"]
    return {name: (t["max_workers"], t["resources"]) for name, t in types.items() if name != config["head_node_type"]}


def kuberay_groups(spec: ClusterSpec) -> Groups:
    def offers() -> Iterator[tuple[str, tuple[int, dict[str, float]]]]:
        for group in spec.workerGroupSpecs:
            (container,) = group.template.spec.containers
            limits = container.resources.limits
            own = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
            yield group.groupName, (group.maxReplicas, own | {k: float(v) for k, v in group.resources.items()})

    return dict(offers())


def assert_room(groups: Groups, config: Config) -> None:
    """All workers together have room, and one of each role fits on a node of the group of its name, and on no other."""
    total: dict[str, float] = {}
    for count, offered in groups.values():
        for kind, amount in offered.items():
            total[kind] = total.get(kind, 0) + count * amount
    assert all(total.get(kind, 0) >= amount for kind, amount in needed(config).items())
    for name in ("rollout", "reward", "learner"):
        role = getattr(config, name)
        one = {"CPU": role.cpus, "GPU": role.gpus} | role.resources
        fits = [g for g, (_, offered) in groups.items() if all(offered.get(k, 0) >= v for k, v in one.items())]
        count = role.workers if name == "learner" else role.max_workers
        assert fits == [name] and groups[name][0] * groups[name][1][name] >= count


def test_the_launcher_takes_the_file() -> None:
    found = validated(tree(CHECKOUT / "cluster.yaml"))
    types = found["available_node_types"]
    assert types[found["head_node_type"]]["resources"]["CPU"] == 0
    assert sum(t["max_workers"] for name, t in types.items() if name != "head") <= found["max_workers"]
    assert types["rollout"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert not any("InstanceMarketOptions" in types[name]["node_config"] for name in ("head", "reward", "learner"))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [((), "max_worker", 3), (("available_node_types", "rollout"), "min_worker", 1), (("provider",), "type", "awz")],
)
def test_the_launcher_s_check_sees_a_wrong_key(where: tuple[str, ...], key: str, value: Any) -> None:
    config = tree(CHECKOUT / "cluster.yaml")
    node = config
    for part in where:
        node = node[part]
    node[key] = value
    with pytest.raises(Exception, match=r"min_worker|max_worker|awz"):
        validated(config)


def test_the_launcher_s_groups_have_room_for_its_run() -> None:
    assert_room(launcher_groups(), command(CHECKOUT / "cluster.yaml"))


def test_nothing_of_the_launcher_s_cluster_is_open_to_the_world() -> None:
    config = tree(CHECKOUT / "cluster.yaml")
    started = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "dashboard-host" not in started and started.count("RAY_AUTH_MODE=token ray start") == 2


def test_kuberay_files_have_published_fields_alone() -> None:
    cluster, job = (tree(KUBERAY / f"{name}.yaml") for name in ("raycluster", "rayjob"))
    RayCluster.model_validate(cluster)
    RayJob.model_validate(job)
    claim = VolumeClaim.model_validate(tree(KUBERAY / "volume.yaml"))
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    spec = ClusterSpec.model_validate(cluster["spec"])
    assert spec.headGroupSpec.rayStartParams == {"num-cpus": "0"}
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        (volume,), (container,) = group.template.spec.volumes, group.template.spec.containers
        assert volume.persistentVolumeClaim.claimName == claim.metadata.name
        assert [mount.name for mount in container.volumeMounts] == [volume.name]


def test_kuberay_s_groups_have_room_for_its_run() -> None:
    job = RayJob.model_validate(tree(KUBERAY / "rayjob.yaml")).spec
    config = of_entrypoint(job.entrypoint)
    assert_room(kuberay_groups(job.rayClusterSpec), config)
    assert config == command(CHECKOUT / "cluster.yaml")
    mounts = {m.mountPath for m in job.rayClusterSpec.headGroupSpec.template.spec.containers[0].volumeMounts}
    assert any(Path(config.run.root).is_relative_to(mount) for mount in mounts)


def test_one_version_of_ray() -> None:
    pinned = re.search(r"^ray==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and pinned[1] == ray.__version__
    assert tree(CHECKOUT / "cluster.yaml")["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-gpu"
    assert tree(KUBERAY / "raycluster.yaml")["spec"]["rayVersion"] == ray.__version__
    images = re.findall(r"rayproject/ray:([\w.]+)", (CHECKOUT / "docs" / "operations.md").read_text())
    assert set(images) == {ray.__version__}
