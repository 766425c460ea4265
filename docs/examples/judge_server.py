"""A reward by a vision-language model behind any endpoint that speaks OpenAI's chat completions, such as vLLM's.

    python judge_server.py http://127.0.0.1:8000/v1 MODEL [PORT]
    redif distill CONFIG reward.terms.judge.options.url=http://127.0.0.1:8900/judge

`/judge` asks how well an image shows its caption, 0 to 10, and answers a tenth of it. `/text` has the model read the
image and answers 1 less the edit distance to the metadata `text` by its length, at least 0: conditions.metadata=[text].
The key of the endpoint, if it wants one, is the environment variable JUDGE_API_KEY. Port 8900 of this machine alone.
"""

import json
import os
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JUDGE = "How well does this image show: {}? Answer with one number from 0 (not at all) to 10 (exactly), nothing else."
READ = "Write down the text in this image, exactly as it stands, and nothing else. If there is none, write NONE."
AT_ONCE = 8  # questions to the endpoint


def ask(image: str, question: str) -> str:
    """Return the model's answer about an image, which is a PNG in base64."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    content = [picture, {"type": "text", "text": question}]
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": content}]}
    key = os.environ.get("JUDGE_API_KEY", "none")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{ENDPOINT}/chat/completions", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=50) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def judged(image: str, caption: str) -> float:
    number = re.search(r"\d+(\.\d+)?", ask(image, JUDGE.format(caption)))
    if number is None:
        raise ValueError("the model answered without a number")
    return min(10.0, float(number[0])) / 10


def read(image: str, text: str) -> float:
    answer = ask(image, READ).strip()
    found, wanted = ("".join(part.casefold().split()) for part in ("" if answer == "NONE" else answer, text))
    return max(0.0, 1 - distance(found, wanted) / max(1, len(wanted)))


def distance(first: str, second: str) -> int:
    """Return Levenshtein's distance of two texts."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if self.path == "/text":
                score, wanted = read, [row["text"] for row in asked["metadata"]]
            else:
                score, wanted = judged, asked["conditions"]
            with ThreadPoolExecutor(AT_ONCE) as questions:
                status, answer = 200, {"rewards": list(questions.map(score, asked["student"], wanted))}
        except Exception as error:  # redif-ray asks again after a 503, and stops with this text in the end
            status, answer = 503, {"error": f"{type(error).__name__}: {error}"}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    ENDPOINT, MODEL = sys.argv[1].rstrip("/"), sys.argv[2]
    port = int(sys.argv[3]) if sys.argv[3:] else 8900
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
