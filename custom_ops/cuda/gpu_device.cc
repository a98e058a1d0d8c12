// The C API gives streams to pluggable devices alone. That of a CUDA device is reached through an exported symbol of
// OpKernelContext, whose layout has been the same from 2.15 to 2.21. All knowledge of that is in this file.

#include "gpu_device.h"

// tensorflow::OpKernelContext::eigen_device<Eigen::GpuDevice>() const
extern "C" __attribute__((weak)) const void* _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen9GpuDeviceEEERKT_v(
    const void*);
// tsl::OpDeterminismRequired()
extern "C" __attribute__((weak)) bool _ZN3tsl21OpDeterminismRequiredEv();

namespace kerasdet {
namespace {

// What Eigen::StreamInterface begins with: virtual functions, of which the destructor takes two places.
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
