// Access to a GPU kernel's stream and settings, which TensorFlow's C API does not offer.
#pragma once

struct TF_OpKernelContext;

namespace kerasdet {

// Returns whether this TensorFlow gives access to streams.
bool HasStreams();

// Returns the CUstream that a GPU kernel must use.
void* StreamOf(TF_OpKernelContext* context);

// Returns whether results must be bit-identical in every run (tf.config.experimental.enable_op_determinism).
bool IsDeterminismRequired();

}  // namespace kerasdet
