"""The configuration of a run: a strict, frozen tree, read from YAML and dotted overrides.

`load(path, overrides)` reads and validates it. An unknown key is an error. Every error message names the key, its
value and what was expected, and for an unknown key the nearest known one.
"""

from redif_ray.config.base import ConfigError, Fraction, Location, Positive, Strict, UnknownKeyError
from redif_ray.config.files import dump, explained, load, public, read_yaml, resolve, validate
from redif_ray.config.overrides import assign, override, parse_override
from redif_ray.config.roles import LEARNED, Reward, RuntimeEnv, Term, Workers
from redif_ray.config.run import Conditions, Lora, Networks, Precision, Quantization, Student, Teacher
from redif_ray.config.searches import Search
from redif_ray.config.training import NEIGHBOURS, Anchor, Diversity, Learner, Regulariser, WarmStart
from redif_ray.config.tree import Config

__all__ = [
    "LEARNED",
    "NEIGHBOURS",
    "Anchor",
    "Conditions",
    "Config",
    "ConfigError",
    "Diversity",
    "Fraction",
    "Learner",
    "Location",
    "Lora",
    "Networks",
    "Positive",
    "Precision",
    "Quantization",
    "Regulariser",
    "Reward",
    "RuntimeEnv",
    "Search",
    "Strict",
    "Student",
    "Teacher",
    "Term",
    "UnknownKeyError",
    "WarmStart",
    "Workers",
    "assign",
    "dump",
    "explained",
    "load",
    "override",
    "parse_override",
    "public",
    "read_yaml",
    "resolve",
    "validate",
]
