"""The fields of RayCluster, RayJob and PersistentVolumeClaim that configs/kuberay may use; any other is an error.

Names and types are those of KubeRay's API reference (ray.io/v1) and of Kubernetes'. `privileged`, `hostPath`,
`hostNetwork` and the like are left out on purpose.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=50)]
Quantity = Annotated[str, Field(pattern=r"^\d+(Mi|Gi)?$")]
Texts = dict[str, str]


class Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Object):
    name: Name


class Requirements(Object):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]


class Capabilities(Object):
    drop: list[Literal["ALL"]] = Field(min_length=1)


class ContainerSecurity(Object):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Mount(Object):
    name: Name
    mountPath: str


class Container(Object):
    name: Name
    image: str
    resources: Requirements
    securityContext: ContainerSecurity
    volumeMounts: list[Mount]


class Seccomp(Object):
    type: Literal["RuntimeDefault"]


class PodSecurity(Object):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(gt=0)]
    runAsGroup: int
    fsGroup: int
    seccompProfile: Seccomp


class Claim(Object):
    claimName: Name


class Volume(Object):
    name: Name
    persistentVolumeClaim: Claim


class PodSpec(Object):
    securityContext: PodSecurity
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume]


class PodTemplate(Object):
    spec: PodSpec


class HeadGroup(Object):
    serviceType: Literal["ClusterIP"]
    rayStartParams: Texts
    template: PodTemplate


class WorkerGroup(Object):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int
    resources: dict[str, Quantity]
    rayStartParams: Texts
    template: PodTemplate


class AutoscalerOptions(Object):
    idleTimeoutSeconds: int


class AuthOptions(Object):
    mode: Literal["token", "disabled"]


class ClusterSpec(Object):
    rayVersion: str
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Object):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class RayJob(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class Storage(Object):
    requests: dict[Literal["storage"], Quantity]


class VolumeClaimSpec(Object):
    accessModes: list[Literal["ReadWriteMany"]]
    storageClassName: str
    resources: Storage


class VolumeClaim(Object):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: VolumeClaimSpec
