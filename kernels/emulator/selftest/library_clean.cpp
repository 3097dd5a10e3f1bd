#include "../../src/hardware.cuh"
#include "../library.h"

namespace clean_cu {
#include "clean.cu"
EMULATE(multiply<f16>)
EMULATE(multiply< bf16 >)
EMULATE(transpose)
EMULATE(sum)
EMULATE(scan)
EMULATE(hand_over)
EMULATE(stride4)
EMULATE(stride16)
EMULATE(stride_matrix)
}  // namespace clean_cu
