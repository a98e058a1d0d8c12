// What TensorFlow knows of a kernel on a GPU and its C API does not tell.
#pragma once

struct TF_OpKernelContext;

namespace kerasdet {

// Whether TensorFlow can be asked for streams.
bool HasStreams();

// The CUstream that a kernel on a GPU has to run on.
void* StreamOf(TF_OpKernelContext* context);

// Whether results have to be the same each time, to the last bit (tf.config.experimental.enable_op_determinism).
bool IsDeterminismRequired();

}  // namespace kerasdet
