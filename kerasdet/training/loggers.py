"""Defines Keras callbacks that log metrics, pictures and files of a run to MLflow or Weights & Biases."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from PIL import Image

from kerasdet.errors import UserError, require_extra
from kerasdet.files import replacing
from kerasdet.training.metrics_log import RUN_LOG
from kerasdet.training.resume import checkpoints

COMPARISON = "comparison.png"  # picture that a run writes: ground truth beside detections


class RunLogger(keras.callbacks.Callback):
    """Sends metrics, pictures and files of a training run to a tracking service; the base class of loggers.

    This class decides when to log; a subclass defines `start`, `log`, `log_picture`, `log_file` and `finish`. At the
    end of each epoch it logs losses and metrics and, after an evaluation, the picture of ground truth and detections.
    At the end of training it copies ``config.gin``, ``metrics.jsonl`` and the model: ``best.keras``, or, without
    validation, the last checkpoint. The service's id of the run is stored in OUT_DIR, so a resumed training continues
    the same run.

    Attributes:
        id_file: Name of the file in OUT_DIR that holds the id of the run.
    """

    id_file: str

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        """Starts a run, or continues the run whose id is in OUT_DIR.

        Args:
            logs: Ignored.

        Raises:
            UserError: If the callback is not used by `kerasdet.train`.
        """
        if "out_dir" not in (self.params or {}):
            raise UserError(
                f"{type(self).__name__} works in kerasdet.train only: pass it as one of the callbacks (Python: "
                "callbacks=[...])."
            )
        self.out_dir = Path(self.params["out_dir"])
        self._picture_time = None
        file = self.out_dir / self.id_file
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        run_id = self.start(known)
        if run_id != known:
            with replacing(file) as partial:
                partial.write_text(f"{run_id}\n", encoding="utf-8")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Logs the finite losses and metrics of an epoch and, after an evaluation, the picture.

        Args:
            epoch: Index of the epoch, from 0.
            logs: Losses and metrics by name, and ``step``.
        """
        values = {name: float(value) for name, value in (logs or {}).items() if math.isfinite(value)}
        step = int(values.pop("step"))
        self.log(step, {**values, "epoch": epoch})
        picture = self.out_dir / COMPARISON
        if picture.is_file() and picture.stat().st_mtime_ns != self._picture_time:
            self._picture_time = picture.stat().st_mtime_ns
            self.log_picture(step, picture)

    def on_train_end(self, logs: Mapping | None = None) -> None:
        """Copies the files of the run to the service and marks the run as finished there.

        Args:
            logs: Ignored.
        """
        models = [self.out_dir / "best.keras", *reversed(checkpoints(self.out_dir / "checkpoints"))]
        for files in ([self.out_dir / "config.gin"], [self.out_dir / RUN_LOG], models):
            if file := next((file for file in files if file.is_file()), None):
                self.log_file(file)
        self.finish()

    def start(self, run_id: str | None) -> str:
        """Starts a run at the service, or opens an existing one.

        Args:
            run_id: Id of the run to continue, or None for a new run.

        Returns:
            The id of the run.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define start: define this method.")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs losses and metrics.

        Args:
            step: Number of completed training steps.
            values: Finite values by name.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define log: define this method.")

    def log_picture(self, step: int, path: Path) -> None:
        """Logs a picture.

        Args:
            step: Number of completed training steps.
            path: Path of an image file.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define log_picture: define this method.")

    def log_file(self, path: Path) -> None:
        """Copies a file of the run to the service.

        Args:
            path: Path of the file.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define log_file: define this method.")

    def finish(self) -> None:
        """Marks the run as finished at the service, after training has ended."""
        raise NotImplementedError(f"{type(self).__name__} does not define finish: define this method.")

    def _settings(self) -> dict[str, Any]:
        return {name: self.params[name] for name in ("model", "steps", "batch_size", "out_dir")}


class MLflowLogger(RunLogger):
    """Logs a training run to MLflow.

    Args:
        tracking_uri: Where MLflow stores the runs: the URL of a server, a database such as "sqlite:///mlflow.db", or a
            folder such as "file:///data/mlruns". For a folder, MLflow 3 needs the environment variable
            MLFLOW_ALLOW_FILE_STORE=true. None: the environment variable MLFLOW_TRACKING_URI, or MLflow's default.
        experiment: Name of the MLflow experiment, created if necessary.
        run_name: Name of the run. None: the name of OUT_DIR.

    Raises:
        UserError: If MLflow is not installed.

    Example:
        >>> train(..., callbacks=[MLflowLogger("http://mlflow:5000", experiment="cells")])
    """

    id_file = "mlflow_run_id"

    def __init__(self, tracking_uri: str | None = None, experiment: str = "kerasdet", run_name: str | None = None):
        super().__init__()
        self._mlflow = require_extra("mlflow", type(self).__name__, "mlflow")
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.run_name = run_name

    def start(self, run_id: str | None) -> str:
        """Starts a run at MLflow, or opens an existing one.

        Args:
            run_id: Id of the run to continue, or None for a new run.

        Returns:
            The id of the run.

        Raises:
            UserError: If MLflow cannot use `tracking_uri`.
        """
        try:
            self._client = self._mlflow.MlflowClient(self.tracking_uri)
            self._run_id = self._create_run() if run_id is None else run_id
            self._client.update_run(self._run_id, "RUNNING")
        except self._mlflow.exceptions.MlflowException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"MLflowLogger cannot log to {self.tracking_uri or 'the default of MLflow'} ({reason}): check "
                f"MLflowLogger.tracking_uri, or delete {self.out_dir / self.id_file} to log to a new run."
            ) from None
        return self._run_id

    def _create_run(self):
        experiment = self._client.get_experiment_by_name(self.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment)
        run = self._client.create_run(experiment_id, run_name=self.run_name or self.out_dir.name)
        for name, value in self._settings().items():
            self._client.log_param(run.info.run_id, name, value)
        return run.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs losses and metrics to MLflow.

        Args:
            step: Number of completed training steps.
            values: Finite values by name.
        """
        now = round(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def log_picture(self, step: int, path: Path) -> None:
        """Logs a picture to MLflow.

        Args:
            step: Number of completed training steps.
            path: Path of an image file.
        """
        with Image.open(path) as picture:
            self._client.log_image(self._run_id, picture, artifact_file=f"pictures/step_{step:08d}.png")

    def log_file(self, path: Path) -> None:
        """Copies a file of the run to MLflow.

        Args:
            path: Path of the file.
        """
        self._client.log_artifact(self._run_id, str(path))

    def finish(self) -> None:
        """Marks the run as finished at MLflow."""
        self._client.set_terminated(self._run_id)


class WandbLogger(RunLogger):
    """Logs a training run to Weights & Biases.

    Args:
        project: Name of the Weights & Biases project.
        name: Name of the run. None: the name of OUT_DIR.
        mode: "online", "offline" (files in OUT_DIR/wandb, which `wandb sync` uploads) or "disabled". None: the
            environment variable WANDB_MODE, or "online".

    Raises:
        UserError: If wandb is not installed, or the mode is unknown.

    Example:
        >>> train(..., callbacks=[WandbLogger("cells", mode="offline")])
    """

    id_file = "wandb_run_id"

    def __init__(self, project: str = "kerasdet", name: str | None = None, mode: str | None = None):
        super().__init__()
        self._wandb = require_extra("wandb", type(self).__name__, "wandb")
        if mode not in (None, "online", "offline", "disabled"):
            raise UserError(f"WandbLogger.mode is {mode!r}: choose 'online', 'offline', 'disabled' or None.")
        self.project = project
        self.name = name
        self.mode = mode

    def start(self, run_id: str | None) -> str:
        """Starts a run at Weights & Biases, or opens an existing one.

        Args:
            run_id: Id of the run to continue, or None for a new run.

        Returns:
            The id of the run.
        """
        self._run = self._wandb.init(
            project=self.project,
            name=self.name or self.out_dir.name,
            mode=self.mode,
            dir=str(self.out_dir),
            id=run_id,
            resume="allow",
            config=self._settings(),
        )
        # A resumed run may repeat steps, and wandb's own step counter rejects repeated steps
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs losses and metrics to Weights & Biases.

        Args:
            step: Number of completed training steps.
            values: Finite values by name.
        """
        self._run.log({"step": step, **values})

    def log_picture(self, step: int, path: Path) -> None:
        """Logs a picture to Weights & Biases.

        Args:
            step: Number of completed training steps.
            path: Path of an image file.
        """
        self._run.log({"step": step, "ground truth and detections": self._wandb.Image(str(path))})

    def log_file(self, path: Path) -> None:
        """Copies a file of the run to Weights & Biases.

        Args:
            path: Path of the file.
        """
        artifact = self._wandb.Artifact(
            f"{path.stem}-{self._run.id}", type="model" if path.suffix == ".keras" else "log"
        )
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        """Marks the run as finished at Weights & Biases."""
        self._run.finish()
