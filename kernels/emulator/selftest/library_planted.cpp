#include "../../src/hardware.cuh"
#include "../library.h"

namespace planted_cu {
#include "planted.cu"
EMULATE(missing_barrier)
EMULATE(missing_barrier_before_reuse)
EMULATE(barrier_of_the_warp_only)
EMULATE(shuffle_as_barrier)
EMULATE(matrix_of_own_rows)
EMULATE(divergent_barrier)
EMULATE(barrier_without_a_warp)
EMULATE(unequal_counts)
EMULATE(count_of_half_a_warp)
EMULATE(crossed_barriers)
EMULATE(unequal_collectives)
EMULATE(collective_in_a_branch)
EMULATE(lane_out_of_range)
EMULATE(beyond_the_end)
EMULATE(base_forgotten)
EMULATE(misaligned)
EMULATE(never_written)
EMULATE(left_by_another_block)
EMULATE(copy_read_before_the_wait)
EMULATE(wait_for_one_too_few)
EMULATE(wait_without_commit)
EMULATE(copy_of_another_thread)
EMULATE(barrier_before_the_wait)
EMULATE(write_over_a_copy)
EMULATE(copy_over_what_is_read)
EMULATE(copy_never_waited_for)
EMULATE(source_misaligned)
EMULATE(source_out_of_bounds)
}  // namespace planted_cu
