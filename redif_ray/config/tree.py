"""The whole configuration: its sections, checked for conflicts between them."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from redif_ray.config.conflicts import conflicts
from redif_ray.config.sections import Sections
from redif_ray.config.uris import Uri


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

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        for problem in conflicts(self):
            raise ValueError(problem)
        return self
