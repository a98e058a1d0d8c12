// Finds the stream of a CUDA device; the C API gives streams only to pluggable devices. An exported function of
// OpKernelContext returns the device; the layout of its classes is the same in TensorFlow 2.15 to 2.21, and only this file
// depends on it. Remove this workaround when the C API gives access to the stream.

#include "gpu_device.h"

// tensorflow::OpKernelContext::eigen_device<Eigen::GpuDevice>() const
extern "C" __attribute__((weak)) const void* _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen9GpuDeviceEEERKT_v(
    const void*);
// tsl::OpDeterminismRequired()
extern "C" __attribute__((weak)) bool _ZN3tsl21OpDeterminismRequiredEv();

namespace kerasdet {
namespace {

// The start of Eigen::StreamInterface: a table of virtual functions, in which the destructor has two entries.
struct EigenStream {
  struct Functions {
    void (*destroy[2])(EigenStream*);
    void* const& (*stream)(const EigenStream*);
  };
  const Functions* functions;
};

// The first member of Eigen::GpuDevice.
struct EigenGpuDevice {
  const EigenStream* stream;
};

}  // namespace

bool HasStreams() { return _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen9GpuDeviceEEERKT_v != nullptr; }

void* StreamOf(TF_OpKernelContext* context) {
  const auto* device = static_cast<const EigenGpuDevice*>(
      _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen9GpuDeviceEEERKT_v(context));
  return device->stream->functions->stream(device->stream);
}

bool IsDeterminismRequired() {
  return _ZN3tsl21OpDeterminismRequiredEv == nullptr || _ZN3tsl21OpDeterminismRequiredEv();
}

}  // namespace kerasdet
