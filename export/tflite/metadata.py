"""TFLite Model Metadata, by which MediaPipe knows what goes in and out, and files that travel inside a TFLite file.

The metadata are a flatbuffer in the model's own (schema ``tensorflow/lite/support/metadata/metadata_schema.fbs``); the
files are a ZIP archive after its end, in which they lie uncompressed, as MediaPipe wants them.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

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
_BOX_PROPERTIES = (("uints", (1, 0, 3, 2)), ("byte", _BOUNDARIES), ("byte", _RATIO))  # where left, top ... are


def with_metadata(
    flatbuffer: bytes, name: str, description: str, order: Sequence[str], files: Mapping[str, bytes]
) -> bytes:
    """A TFLite file with metadata, its outputs in order, and files inside.

    Args:
        flatbuffer: With one signature.
        name: Of the model, for people.
        description: Likewise.
        order: Of all outputs that there may be.
        files: Name -> content; `LABELS_FILE` names the classes.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    for buffer in model.buffers:
        if buffer.offset:  # what ai-edge-quantizer wrote behind the flatbuffer
            buffer.data = np.frombuffer(flatbuffer, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    tensors = {output.name.decode(): output.tensorIndex for output in signature.outputs}
    outputs = sorted(tensors, key=order.index)
    graph.outputs = [tensors[output] for output in outputs]
    model.description = description
    _add_metadata(model, b"TFLITE_METADATA", _model_metadata(name, description, outputs, LABELS_FILE in files))
    content = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
        for file, data in files.items():
            archive.writestr(zipfile.ZipInfo(file), data)  # without the time, so that equal exports are equal
    return content.getvalue()


def _add_metadata(model, name, content):
    buffer = schema.BufferT()
    buffer.data = list(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def _model_metadata(name, description, outputs, has_labels):
    """The flatbuffer; a table is a tuple of its fields, None where one is absent."""
    # NormalizationOptions: pixels go in as they are, the file itself normalises
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
    """TensorMetadata."""
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
    """A table, after all that it points to; its offset."""
    values = [field and (field[0], field[1] if field[0] == "byte" else _value(builder, *field)) for field in fields]
    builder.StartObject(len(fields))
    for slot, value in enumerate(values):
        if value is not None and value[0] == "byte":
            builder.PrependInt8Slot(slot, value[1], -1)
        elif value is not None:
            builder.PrependUOffsetTRelativeSlot(slot, value[1], 0)
    return builder.EndObject()


def _value(builder, kind, value):
    """The offset of a string, a table or a vector."""
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
