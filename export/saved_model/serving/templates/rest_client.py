"""Sends images to TF Serving by REST: ``python rest_client.py IMAGE... [--server http://HOST:8501]``.

The client needs only Python. For large masks gRPC is faster, because JSON writes numbers as text.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path


def detect(server: str, images: Sequence[bytes], model: str = "detector", timeout: float = 60.0) -> dict[str, list]:
    """Requests the detections of encoded images from the server.

    Args:
        server: URL of the server, such as ``http://localhost:8501``.
        images: A list of the bytes of JPEG or PNG files, of any sizes.
        model: Name of the model on the server.
        timeout: Time limit of the request, in seconds.

    Returns:
        The outputs, nested lists by name with one item per image, such as ``detection_boxes`` (N, D, 4) for N images
        with at most D detections each; see models/detector/1/assets/model_card.md.
    """
    encoded = [{"b64": base64.b64encode(image).decode()} for image in images]
    body = json.dumps({"signature_name": "encoded", "inputs": {"image_bytes": encoded}}).encode()
    request = urllib.request.Request(f"{server}/v1/models/{model}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)["outputs"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sends the images named on the command line to the server and prints the detections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--model", default="detector")
    parser.add_argument("--score", type=float, default=0.3, help="print detections with at least this score, in [0, 1]")
    options = parser.parse_args(arguments)
    try:
        found = detect(options.server, [path.read_bytes() for path in options.images], options.model)
    except urllib.error.HTTPError as error:
        sys.exit(f"{options.server}: {error.code}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"{options.server}: {error.reason}")
    for index, path in enumerate(options.images):
        print(path)
        for k in range(int(found["num_detections"][index])):
            score = found["detection_scores"][index][k]
            if score >= options.score:
                box = " ".join(f"{value:.4f}" for value in found["detection_boxes"][index][k])
                print(f"  class {found['detection_classes'][index][k]:.0f}  score {score:.3f}  box {box}")


if __name__ == "__main__":
    main()
