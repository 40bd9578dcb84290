"""How many engines, of which kinds, and which request goes where."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scenarios.schema.names import RouterName
from scenarios.schema.section import NotNegative, Positive, Section


class ReplicaGroup(Section):
    """Equal replicas that differ from the scenario in their model or in some values of three of its
    sections.

    ``role`` prefill and decode make two pools of a disaggregated deployment. Replicas of groups
    that name the same ``shared_gpu`` are on it together, as are several of one such group.
    """

    name: str = ""
    replicas: Annotated[int, Field(ge=1, le=1024)]
    role: Literal["both", "prefill", "decode"] = "both"
    model: str | None = None  # another than the scenario's; every group then names its classes
    classes: Annotated[list[str], Field(min_length=1)] | None = None  # of requests it is for
    shared_gpu: Annotated[str, Field(min_length=1)] | None = None  # by its name, as others say it
    hardware: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    latency: dict[str, Any] = Field(default_factory=dict)


class KvLink(Section):
    """What KV caches travel over, out of one prefill replica."""

    bandwidth_gb_per_s: Annotated[float, Field(ge=1e-3, le=1e6, allow_inf_nan=False)]
    latency_us: NotNegative = 0.0


class Autoscaling(Section):
    """As many replicas as `target_outstanding` unfinished requests each make necessary.

    The cluster's ``replicas`` are the most there can be.
    """

    min_replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    target_outstanding: Positive
    check_every_s: Positive = 10.0
    startup_s: NotNegative = 60.0  # until a new replica serves
    cooldown_s: NotNegative = 120.0  # between the last change and a replica less


class Failure(Section):
    """A replica loses everything; its requests begin anew elsewhere."""

    replica: Annotated[int, Field(ge=0, le=1023)]  # counted from 0, group after group
    at_s: NotNegative
    recover_after_s: Positive | None = None  # none: never


class Cluster(Section):
    """How many engines, and which request goes where."""

    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    groups: list[ReplicaGroup] = Field(
        default_factory=list
    )  # instead of `replicas`, where they differ
    router: RouterName = "round_robin"
    # of groups on one GPU: those that compute share its time evenly, or have it one by one
    gpu_sharing: Literal["time_slices", "turns"] = "time_slices"
    kv_link: KvLink | None = None
    autoscaling: Autoscaling | None = None
    failures: list[Failure] = Field(default_factory=list)

    @property
    def num_replicas(self) -> int:
        """Replicas at most, in all groups."""
        return sum(group.replicas for group in self.groups) or self.replicas

    @property
    def is_plain(self) -> bool:
        """Equal replicas, dealt requests in turn: what needs no cluster around it."""
        return (
            self.router == "round_robin"
            and not self.groups
            and self.autoscaling is None
            and not self.failures
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.groups and self.replicas > 1:
            raise ValueError("replicas and groups are both given: each group has its own replicas")
        roles = {group.role for group in self.groups}
        if roles & {"prefill", "decode"}:
            if roles != {"prefill", "decode"}:
                missing = "decode" if "prefill" in roles else "prefill"
                raise ValueError(
                    f"groups: the roles are {', '.join(sorted(roles))}; disaggregation needs "
                    f"prefill and decode groups and no others ({missing} or both is wrong here)"
                )
            if self.kv_link is None:
                raise ValueError(
                    "groups: prefill and decode pools need a kv_link between them, e.g. "
                    "kv_link: {bandwidth_gb_per_s: 50, latency_us: 10}"
                )
            if self.autoscaling is not None:
                raise ValueError("autoscaling of prefill and decode pools is not modelled")
        elif self.kv_link is not None:
            raise ValueError("kv_link has no meaning without prefill and decode groups")
        self._check_models()
        self._check_shared()
        if self.autoscaling is not None and self.autoscaling.min_replicas > self.num_replicas:
            raise ValueError(
                f"autoscaling: min_replicas {self.autoscaling.min_replicas} is above the "
                f"{self.num_replicas} replicas there can be"
            )
        for failure in self.failures:
            if failure.replica >= self.num_replicas:
                raise ValueError(
                    f"failures: there is no replica {failure.replica}: the last of "
                    f"{self.num_replicas} is {self.num_replicas - 1}"
                )
        return self

    def _check_models(self) -> None:
        """Requests of one class are for one model."""
        model_of: dict[str, str | None] = {}
        unlike = len({group.model for group in self.groups}) > 1
        for number, group in enumerate(self.groups):
            if group.role != "both" and (group.model or group.classes):
                raise ValueError(
                    f"groups[{number}]: model and classes of prefill and decode pools are not "
                    "modelled"
                )
            if unlike and not group.classes:
                raise ValueError(
                    f"groups[{number}]: groups serve several models, so each says whose requests "
                    "it is for: give classes"
                )
            for name in group.classes or ():
                if model_of.setdefault(name, group.model) != group.model:
                    raise ValueError(
                        f"groups[{number}]: class {name} is for a group of another model, too"
                    )

    def _check_shared(self) -> None:
        """What comes and goes on GPUs of its own does not on one that is shared."""
        if not any(group.shared_gpu for group in self.groups):
            if self.gpu_sharing != "time_slices":
                raise ValueError("gpu_sharing has no meaning without groups that are on one GPU")
            return
        if self.autoscaling is not None:
            raise ValueError("autoscaling of replicas that share a GPU is not modelled")
