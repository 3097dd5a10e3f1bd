// cp.async: copies in groups, waited for by the thread that issued them.
#pragma once

#include "collectives.h"

namespace emulator __attribute__((visibility("hidden"))) {

inline void perform(Copy& copy) {
  u8* destination = machine->memory(copy.destination);
  if (copy.valid) {
    memcpy(destination, copy.source, 16);
  } else {
    memset(destination, 0, 16);
  }
  copy.done = true;
}

inline void issue_copy(u32 destination, const void* source, bool valid, Site at) {
  Thread& me = *machine->current;
  machine->check_waited("a copy is issued", at);
  machine->counters.async_copies++;
  const u32 place = machine->place(destination, 16, at);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) fault(at, "global address %p is not a multiple of 16", source);
  machine->races.copy_issued(me.index, place, 16, at);
  // Read here whenever the copy takes effect, so that a sanitizer names the line that gave a bad address.
  if (valid) {
    volatile const u64* words = static_cast<volatile const u64*>(source);
    (void)words[0], (void)words[1];
  }
  me.copies.push_back({place, source, valid, false, me.open_group, at});
  if (machine->takes_effect_at_once()) perform(me.copies.back());
}

inline void commit_copies() { machine->current->open_group++; }

// Waits for all groups but the last `in_flight`.
inline void wait_for_copies(u32 in_flight) {
  Thread& me = *machine->current;
  size_t landed = 0;
  while (landed < me.copies.size() && me.copies[landed].group + in_flight < me.open_group) {
    Copy& copy = me.copies[landed++];
    if (!copy.done) perform(copy);
    machine->races.copy_landed(me.index, copy.destination, 16);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + (ptrdiff_t)landed);
}

}  // namespace emulator
