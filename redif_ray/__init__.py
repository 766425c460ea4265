"""redif-ray: few-step diffusion students by policy gradient, on a Ray cluster."""

__version__ = "0.1.0"
