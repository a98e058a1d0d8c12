"""Sends images to TF Serving by gRPC: ``python grpc_client.py IMAGE... [--server HOST:8500]``.

The client needs the package tensorflow-serving-api.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def detect(
    stub: prediction_service_pb2_grpc.PredictionServiceStub,
    images: Sequence[bytes],
    model: str = "detector",
    timeout: float = 60.0,
) -> dict[str, np.ndarray]:
    """Requests the detections of encoded images from the server.

    Args:
        stub: A `PredictionServiceStub`.
        images: A list of the bytes of JPEG or PNG files, of any sizes.
        model: Name of the model on the server.
        timeout: Time limit of the request, in seconds.

    Returns:
        The outputs, arrays by name with one row per image, such as ``detection_boxes`` (N, D, 4) for N images with at
        most D detections each; see models/detector/1/assets/model_card.md.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "encoded"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images, tf.string, [len(images)]))
    response = stub.Predict(request, timeout)
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Sends the images named on the command line to the server and prints the detections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", default="detector")
    parser.add_argument("--score", type=float, default=0.3, help="print detections with at least this score, in [0, 1]")
    options = parser.parse_args(arguments)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(options.server, UNLIMITED))
    try:
        found = detect(stub, [path.read_bytes() for path in options.images], options.model)
    except grpc.RpcError as error:
        sys.exit(f"{options.server}: {error.code().name}: {error.details()}")
    for index, path in enumerate(options.images):
        print(path)
        for k in range(int(found["num_detections"][index])):
            score = found["detection_scores"][index, k]
            if score >= options.score:
                box = " ".join(f"{value:.4f}" for value in found["detection_boxes"][index, k])
                print(f"  class {found['detection_classes'][index, k]:.0f}  score {score:.3f}  box {box}")


if __name__ == "__main__":
    main()
