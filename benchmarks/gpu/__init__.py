"""Networks of published sizes through the whole pipeline, beside plain loops of diffusers."""
