"""A reward that checks what a caption asks for: whether most of what is not white has the colour that the source names.

    redif distill CONFIG conditions.source=prompts.jsonl conditions.metadata=[colour]
        "reward.terms.colour.options={callable: own_checker.py:right_colour, teacher: false}"

A line of prompts.jsonl: {"caption": "two red circles", "colour": [255, 0, 0]}
"""

import torch

NEAR, WHITE = 0.35, 0.9


def right_colour(student, teacher, conditions, metadata):
    """Return 1 for each image [B, 3, H, W] in [0, 1] that is right, else 0. metadata: a mapping for each row."""
    asked = torch.tensor([row["colour"] for row in metadata], device=student.device) / 255
    near = (student - asked[:, :, None, None]).abs().amax(1) < NEAR
    drawn = (student < WHITE).any(1)
    return ((near & drawn).sum((1, 2)) > 0.5 * drawn.sum((1, 2)).clamp(min=1)).float()
