"""Adds TFLite Model Metadata and attached files to a TFLite file.

MediaPipe reads the metadata, which describe inputs and outputs. They are a flatbuffer inside the flatbuffer of the
model (schema ``tensorflow/lite/support/metadata/metadata_schema.fbs``). The attached files form a ZIP archive after the
end of the model, without compression because MediaPipe reads them in place. MediaPipe's own metadata writer fails on
current releases (1.2, Python 3.11), so this module writes the flatbuffer itself.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np

from kerasdet.keras_compat import tflite_schema, tflite_to_bytes

LABELS_FILE = "labels.txt"

_FEATURE, _IMAGE, _BOX = 1, 2, 3  # ContentProperties
_RGB, _BOUNDARIES, _RATIO, _VALUE_LABELS = 1, 1, 0, 3
_NORMALIZATION = 1  # ProcessUnitOptions
_OUTPUT_NAMES = {
    "detection_boxes": "location",
    "detection_classes": "category",
    "detection_scores": "score",
    "num_detections": "number of detections",
}
# BoundingBoxProperties: positions of left, top, right and bottom in a box, which is given by its corners in 0..1
_BOX_PROPERTIES = (("uints", (1, 0, 3, 2)), ("byte", _BOUNDARIES), ("byte", _RATIO))


def with_metadata(
    flatbuffer: bytes, name: str, description: str, order: Sequence[str], files: Mapping[str, bytes]
) -> bytes:
    """Adds metadata and files to a TFLite file, and puts its outputs into a given order.

    Args:
        flatbuffer: Contents of the TFLite file, which has one signature.
        name: Name of the model for users.
        description: Description of the model for users.
        order: Names of all possible outputs in the desired order; the file may lack some outputs.
        files: Contents of the files to attach, by name. `LABELS_FILE` holds the class names.

    Returns:
        The contents of the new TFLite file.
    """
    schema = tflite_schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    for buffer in model.buffers:
        if buffer.offset:  # ai-edge-quantizer puts large buffers behind the flatbuffer, where the ZIP archive goes
            buffer.data = np.frombuffer(flatbuffer, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    tensors = {output.name.decode(): output.tensorIndex for output in signature.outputs}
    outputs = sorted(tensors, key=order.index)
    graph.outputs = [tensors[output] for output in outputs]
    model.description = description
    _add_metadata(model, b"TFLITE_METADATA", _model_metadata(name, description, outputs, LABELS_FILE in files))
    content = io.BytesIO(tflite_to_bytes(model))
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
        for file, data in files.items():
            archive.writestr(zipfile.ZipInfo(file), data)  # without a date, so that equal exports are equal files
    return content.getvalue()


def _add_metadata(model, name, content):
    schema = tflite_schema()
    buffer = schema.BufferT()
    buffer.data = list(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def _model_metadata(name, description, outputs, has_labels):
    """Writes the metadata flatbuffer. A table is a tuple of its fields, with None for an absent one."""
    # NormalizationOptions of mean 0 and deviation 1: the file normalises pixels itself
    normalization = (("byte", _NORMALIZATION), ("table", (("floats", (0.0,)), ("floats", (1.0,)))))
    image = _tensor("image", "RGB, 0..255", (_IMAGE, (("byte", _RGB),)), [normalization])
    labels = (("string", LABELS_FILE), ("string", "class names"), ("byte", _VALUE_LABELS))
    tensors = []
    for output in outputs:
        content = (_BOX, _BOX_PROPERTIES) if output == "detection_boxes" else (_FEATURE, ())
        files = [labels] if output == "detection_classes" and has_labels else []
        tensors.append(_tensor(_OUTPUT_NAMES.get(output, output), output, content, files=files))
    subgraph = (None, None, ("tables", [image]), ("tables", tensors))
    root = (("string", name), ("string", description), ("string", "1"), ("tables", [subgraph]))
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, root), b"M001")
    return bytes(builder.Output())


def _tensor(name, description, content, units=(), files=()):
    """Returns a TensorMetadata table."""
    kind, properties = content
    return (
        ("string", name),
        ("string", description),
        None,
        ("table", (("byte", kind), ("table", properties))),
        ("tables", units) if units else None,
        None,
        ("tables", files) if files else None,
    )


def _write(builder, fields):
    """Writes a table after everything that it points to, and returns its offset."""
    values = [field and (field[0], field[1] if field[0] == "byte" else _value(builder, *field)) for field in fields]
    builder.StartObject(len(fields))
    for slot, value in enumerate(values):
        if value is not None and value[0] == "byte":
            builder.PrependInt8Slot(slot, value[1], -1)
        elif value is not None:
            builder.PrependUOffsetTRelativeSlot(slot, value[1], 0)
    return builder.EndObject()


def _value(builder, kind, value):
    """Writes a string, a table or a vector, and returns its offset."""
    if kind == "string":
        return builder.CreateString(value)
    if kind == "table":
        return _write(builder, value)
    if kind == "tables":
        offsets = [_write(builder, table) for table in value]
        prepend = builder.PrependUOffsetTRelative
    else:
        offsets, prepend = value, builder.PrependFloat32 if kind == "floats" else builder.PrependUint32
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        prepend(offset)
    return builder.EndVector()
