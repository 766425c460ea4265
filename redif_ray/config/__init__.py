"""The whole configuration as one strict, frozen tree. YAML in, dotted overrides on top; an unknown key is an error.

`load(path, overrides)` is the only way in; every message names the key, the value, what was expected and, for a key
that does not exist, the nearest one that does.
"""

from redif_ray.config.base import ConfigError, Fraction, Positive, Strict, UnknownKeyError
from redif_ray.config.files import (
    assign,
    dump,
    explained,
    known_keys,
    load,
    parse_override,
    read_yaml,
    resolve,
    validate,
)
from redif_ray.config.roles import LEARNED, Reward, RuntimeEnv, Term, Workers
from redif_ray.config.run import Conditions, Lora, Networks, Run, Student, Teacher
from redif_ray.config.searches import Search
from redif_ray.config.training import NEIGHBOURS, Anchor, Learner, Regulariser, WarmStart
from redif_ray.config.tree import Config

__all__ = [
    "LEARNED",
    "NEIGHBOURS",
    "Anchor",
    "Conditions",
    "Config",
    "ConfigError",
    "Fraction",
    "Learner",
    "Lora",
    "Networks",
    "Positive",
    "Regulariser",
    "Reward",
    "Run",
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
    "known_keys",
    "load",
    "parse_override",
    "read_yaml",
    "resolve",
    "validate",
]
