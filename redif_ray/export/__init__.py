"""Export of a student as a diffusers folder that loads without this package."""

from redif_ray.export.student import export_student, recipe

__all__ = ["export_student", "recipe"]
