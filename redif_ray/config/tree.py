"""The whole configuration: its sections, checked for conflicts between them."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import model_validator

from redif_ray import yaml12
from redif_ray.config.conflicts import conflicts
from redif_ray.config.sections import Sections
from redif_ray.config.uris import Uri, shown


class Config(Sections):
    """The configuration of a run; a conflict between keys is an error."""

    @property
    def tracking_uri(self) -> Uri | None:
        """Return the URI of the MLflow store: `tracking.uri`, SQLite at <root>/mlflow.db by default, None when off."""
        if self.tracking.uri == "off":
            return None
        return self.tracking.uri or Uri(f"sqlite:///{Path(self.run.root).resolve() / 'mlflow.db'}")

    @property
    def experiment(self) -> str:
        """Return the name of the MLflow experiment."""
        return self.tracking.experiment or "redif"

    def __repr__(self) -> str:
        """Return what differs from the defaults, without secrets, as Python's prompt and a notebook show it."""
        tree = shown(self.model_dump(mode="json", exclude_defaults=True))
        text = yaml.dump(tree, Dumper=yaml12.Dumper, sort_keys=False, allow_unicode=True, width=110)
        return f"# what differs from the defaults\n{text}"

    __str__ = __repr__

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        for problem in conflicts(self):
            raise ValueError(problem)
        return self
