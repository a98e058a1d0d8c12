// All kernels, as one program.
#include "deform_conv.cu"
#include "nms.cu"
#include "roi_align.cu"
#include "sums.cu"
