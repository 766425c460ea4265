"""A reward by an object detector, in the manner of GenEval (arXiv 2310.11513): are the asked-for objects there?

    python detector_server.py FOLDER [PORT]
    redif distill CONFIG conditions.source=prompts.jsonl conditions.metadata=[include]
        reward.terms.objects.options.url=http://127.0.0.1:8900

FOLDER holds a detector of transformers, such as a DETR or YOLOS that was trained on COCO, in safetensors. A line of
prompts.jsonl is one of GenEval's, with the prompt as `caption`:

    {"caption": "two red apples left of a dog", "include": [
        {"class": "apple", "count": 2, "color": "red"}, {"class": "dog", "count": 1, "position": ["right of", 0]}]}

The reward is the share of these demands that an image meets: the number of objects of each class, the colour of each,
the place of one relative to those of another demand. Unlike GenEval, which asks CLIP, a colour is that of the middle of
an object's box. Port 8900 of this machine alone.
"""

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

CONFIDENT = 0.5  # scores of boxes that count
OVERLAP = 0.9  # boxes of one class that share more of the smaller one are one object
COLOURS = {
    "red": (220, 30, 30),
    "orange": (240, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 150, 50),
    "blue": (40, 80, 210),
    "purple": (130, 50, 160),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}


class Detector:
    """A detector of transformers; calls take turns."""

    def __init__(self, folder):
        options = {"local_files_only": True, "trust_remote_code": False}
        self.processor = AutoImageProcessor.from_pretrained(folder, **options)
        self.network = AutoModelForObjectDetection.from_pretrained(folder, use_safetensors=True, **options).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network.to(self.device)
        self.lock = Lock()

    @torch.no_grad()
    def __call__(self, image):
        """Return the boxes (x0, y0, x1, y1) of each class in an image, by its name, best scores first."""
        with self.lock:
            found = self.network(**self.processor(images=image, return_tensors="pt").to(self.device))
        sizes = torch.tensor([image.size[::-1]])
        (found,) = self.processor.post_process_object_detection(found, CONFIDENT, sizes)
        objects = {}
        for at in found["scores"].argsort(descending=True).tolist():
            boxes = objects.setdefault(self.network.config.id2label[int(found["labels"][at])], [])
            box = found["boxes"][at].tolist()
            if not any(shared(box, other) > OVERLAP for other in boxes):
                boxes.append(box)
        return objects


def shared(a, b):
    """Return the share of the smaller box that the two have in common."""
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / max(1e-6, min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)))


def colour(image, box):
    """Return the name of the colour in the middle of a box."""
    x0, y0, x1, y1 = box
    middle = (x0 + (x1 - x0) / 4, y0 + (y1 - y0) / 4, x1 - (x1 - x0) / 4, y1 - (y1 - y0) / 4)
    pixels = np.asarray(image.crop(tuple(round(edge) for edge in middle)), dtype=np.float64).reshape(-1, 3)
    seen = np.median(pixels, axis=0) if len(pixels) else np.zeros(3)
    return min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())


def placed(box, other, relation):
    """Tell whether the middle of a box lies as the relation says, by more than a tenth of both boxes' size."""
    x, y = ((box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1))
    far_x, far_y = ((box[i + 2] - box[i] + other[i + 2] - other[i]) / 10 for i in (0, 1))
    return {"left of": x < -far_x, "right of": x > far_x, "above": y < -far_y, "below": y > far_y}[relation]


def score(image, objects, include):
    """Return the share of the demands `include` that the objects in an image meet."""
    met, chosen = [], []
    for demand in include:
        boxes = objects.get(demand["class"], [])
        if (wanted := demand.get("color")) is not None:
            boxes = [box for box in boxes if colour(image, box) == wanted]
        relation, of = demand.get("position") or (None, 0)
        if relation is not None:
            boxes = [box for box in boxes if any(placed(box, other, relation) for other in chosen[of])]
        chosen.append(boxes)
        count = demand.get("count")  # Parquet has None for what only other demands have
        met.append(len(boxes) == (1 if count is None else count))
    return sum(met) / len(met) if met else 1.0  # nothing is asked for


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rewards = []
        for text, row in zip(asked["student"], asked["metadata"], strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            rewards.append(score(image, self.server.detector(image), row["include"]))
        answer = json.dumps({"rewards": rewards}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if sys.argv[2:] else 8900), Handler)
    server.detector = Detector(sys.argv[1])
    server.serve_forever()
