#include "../../src/hopper.cuh"
#include "../library.h"

namespace hopper_cu {
#include "hopper.cu"
EMULATE(multiply<f16, Fault::none>)
EMULATE(multiply<bf16, Fault::none>)
EMULATE(multiply<f16, Fault::init_not_fenced>)
EMULATE(multiply<f16, Fault::no_barrier_after_init>)
EMULATE(multiply<f16, Fault::full_not_awaited>)
EMULATE(multiply<f16, Fault::empty_not_awaited>)
EMULATE(multiply<f16, Fault::wrong_parity>)
EMULATE(multiply<f16, Fault::too_few_bytes_expected>)
EMULATE(multiply<f16, Fault::too_many_bytes_expected>)
EMULATE(multiply<f16, Fault::too_many_arrivals>)
EMULATE(multiply<f16, Fault::released_before_the_wait>)
EMULATE(multiply<f16, Fault::released_one_too_early>)
EMULATE(multiply<f16, Fault::no_accumulator_fence>)
EMULATE(multiply<f16, Fault::unequal_descriptors>)
EMULATE(multiply<f16, Fault::unaligned_stage>)
EMULATE(multiply<f16, Fault::products_never_awaited>)
EMULATE(multiply_stored<true>)
EMULATE(multiply_stored<false>)
}  // namespace hopper_cu
