// Includes all kernels, so that NVRTC compiles them as one program.
#include "deform_conv.cu"
#include "nms.cu"
#include "roi_align.cu"
#include "sums.cu"
