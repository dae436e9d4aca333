"""Runs local ONNX models of images on onnxruntime, which the extra "onnx" installs."""

from pathlib import Path
from typing import Any

import numpy as np

from side_jax.data import config_files
from side_jax.errors import InputError
from side_jax.features import preprocess
from side_jax.features.extractors import Extractor, on_devices
from side_jax.settings import Label


class OnnxModel:
    """A model from one image to one vector: an encoder's embedding or a classifier's logits.

    Runs on the CPU, deterministically, in one session that threads may share.

    Attributes:
      channels: number of input channels, 1 or 3.
      size: height and width of the input, or None for any.
      batch: batch size of the input, or None for any.
    """

    channels: int
    size: int | None
    batch: int | None

    def __init__(self, path: str | Path):
        """Loads and checks a file.

        Args:
          path: a model with one input, float32 [batch, 1 or 3, h, w], and exactly one output float32 [batch, d];
            outputs of other ranks or types are ignored. Batch, h and w may be fixed or free.

        Raises:
          InputError: if onnxruntime is missing, or if the file can't be read or holds another kind of model.
        """
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path} needs onnxruntime; run `pip install 'side_jax[onnx]'`.") from None
        options = onnxruntime.SessionOptions()
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # errors are raised anyway
        # The file's hash does not cover external weights, so they must not be read: point to a folder that can't exist.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{path}/nowhere")
        try:
            content = Path(path).read_bytes()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no other common base class
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} can't be read as ONNX ({reason}); give one whole file, with the weights in it."
            ) from None
        self._path, inputs, outputs = str(path), self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        if len(shape) != 4 or shape[1] not in (1, 3) or len({side for side in shape[2:] if _fixed(side)}) > 1:
            raise InputError(
                f"{path} takes {_describe(inputs)}; give a model that takes square images alone, as "
                "tensor(float) [batch, 1 or 3, height, width]."
            )
        vectors = [output for output in outputs if output.type == "tensor(float)" and len(output.shape) == 2]
        if len(vectors) != 1:
            raise InputError(
                f"{path} gives {_describe(outputs)}; give a model with exactly one output of tensor(float) [batch, d]."
            )
        self.channels = shape[1]
        self.batch = _fixed(shape[0])
        self.size = _fixed(shape[2]) or _fixed(shape[3])
        self._input, self._output = inputs[0].name, vectors[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps float32 [n, channels, h, w], n at least 1, to float32 [n, d].

        Raises:
          InputError: if the model can't take images of that size.
        """
        n, parts = len(images), []
        size = self.batch or n
        for start in range(0, n, size):
            rows = np.arange(start, start + size).clip(max=n - 1)
            try:
                (part,) = self._session.run([self._output], {self._input: images[rows]})
                if len(part) != size:
                    raise ValueError(f"it gives {len(part)} vectors for {size} images")
            except Exception as error:  # as above
                shape, reason = "x".join(map(str, images.shape[2:])), " ".join(str(error).split())
                raise InputError(
                    f"{self._path} can't be run on {size} images of {shape} pixels ({reason}); give a model that can."
                ) from None
            parts.append(part)
        return np.concatenate(parts)[:n]


def encoder(label: Label, channels: int) -> tuple[OnnxModel, str]:
    """Loads the model of label.weights, checks it against the images, and returns it with its file's SHA-256.

    Raises:
      InputError: if it does not fit the images, or its hash is not label.weights_sha256.
    """
    digest = config_files.digest(label.weights, label.weights_sha256, "label.weights")
    model = OnnxModel(label.weights)
    if model.size not in (None, label.encoder_size):
        raise InputError(
            f"{label.weights} takes images of {model.size}x{model.size} pixels; set config.label.encoder_size = "
            f"{model.size} (now {label.encoder_size})."
        )
    if model.channels == 1 and channels == 3:
        raise InputError(f"{label.weights} takes grey images, but config.data.channels is 3; give an encoder of RGB.")
    # Run on two images, to detect a model that declares any batch size but accepts only one image.
    model(np.zeros((2, model.channels, label.encoder_size, label.encoder_size), np.float32))
    return model, digest


def extractor(label: Label, channels: int, *, batch_size: int) -> Extractor:
    """Makes an extractor of features [n, d] from a local encoder.

    Args:
      label: the encoder and the preprocessing.
      channels: of the images.
      batch_size: images per call.

    Raises:
      InputError: as in encoder.
    """
    model, digest = encoder(label, channels)
    prepare = on_devices(lambda _, images, index: preprocess.prepare(images, label, model.channels), (), batch_size)

    def embed(images: np.ndarray, index: np.ndarray) -> np.ndarray:
        return model(np.ascontiguousarray(prepare(images, index).transpose(0, 3, 1, 2)))

    identity = {"name": "onnx", "weights_sha256": digest} | preprocess.description(label)
    return Extractor(identity=identity, embed=embed, batch_size=batch_size)


def _fixed(side: Any) -> int | None:
    """Returns the size of an axis, or None for a name, which stands for any size."""
    return side if isinstance(side, int) and side > 0 else None


def _describe(values: Any) -> str:
    return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values) or "nothing"
