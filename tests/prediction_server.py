"""Stands in for TF Serving: ``python prediction_server.py BASE_PATH`` prints its port and serves until it is killed.

It serves the newest version in BASE_PATH as TF Serving does: it replays the warm-up requests, then answers `Predict` by
gRPC, with INVALID_ARGUMENT if the graph raises an error.
"""

import sys
from concurrent import futures
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers the `PredictionService` calls for one SavedModel."""

    def __init__(self, base_path):
        versions = [path for path in Path(base_path).iterdir() if path.name.isdigit()]
        self.path = max(versions, key=lambda path: int(path.name))
        self.name = self.path.parent.name
        self.signatures = tf.saved_model.load(str(self.path)).signatures
        self.warmed_up = 0
        requests = self.path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(requests)).as_numpy_iterator() if requests.exists() else ():
            self.answer(prediction_log_pb2.PredictionLog.FromString(record).predict_log.request)
            self.warmed_up += 1

    def answer(self, request):
        """Runs a request and returns its `PredictResponse`."""
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = self.signatures[request.model_spec.signature_name or "serving_default"](**inputs)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    def Predict(self, request, context):
        if request.model_spec.name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request.model_spec.name}")
        try:
            return self.answer(request)
        except (KeyError, TypeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no such signature or input: {error}")
        except tf.errors.OpError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)


def main(base_path):
    """Prints the port and the number of warm-up requests, and serves."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=UNLIMITED)
    predictions = Predictions(base_path)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, predictions.warmed_up, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
