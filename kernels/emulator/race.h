// Happens-before race detection on shared memory.
//
// Every thread has a vector clock: what it knows of each agent's progress. Barriers merge the clocks of those who
// meet. Two accesses race if neither agent knew of the other's: that follows from the kernel's synchronisation alone,
// so a race is found under a schedule where it does no harm. (FastTrack, Flanagan and Freund 2009, without its
// compression of reads to one epoch.)
//
// The same shadow memory tells words that were never written in this block, and words that a copy in flight will
// write.
#pragma once

#include <algorithm>
#include <vector>

#include "base.h"

namespace emulator __attribute__((visibility("hidden"))) {

typedef std::vector<u32> Clock;

// An access to shared memory: by whom, when on its own clock, from where.
struct Access {
  u32 agent = 0;
  u32 time = 0;  // 0: before everything
  Site at = {"", 0};
};

class RaceDetector {
 public:
  bool on = false;

  void start_launch(bool detect, u32 threads, u32 shared_bytes) {
    on = detect;
    if (!on) return;
    threads_ = threads;
    clocks_.resize(threads);
    if (words_.size() < shared_bytes / 4 + 1) words_.resize(shared_bytes / 4 + 1);
  }

  void start_block() {
    if (!on) return;
    block_++;
    agents_ = threads_;
    fences_.assign(threads_, 0);
    reads_.clear();
    free_read_ = NONE;
    for (u32 thread = 0; thread < threads_; thread++) {
      clocks_[thread].assign(threads_, 0);
      clocks_[thread][thread] = 1;
    }
  }

  // Something else than a thread that accesses shared memory: it has no knowledge of others, they learn how far it
  // has come.
  u32 new_agent() {
    if (!on) return NONE;
    for (Clock& clock : clocks_) clock.push_back(0);
    return agents_++;
  }

  // ---- ordering

  // What `thread` has done so far is known to whoever acquires `into`.
  void release(u32 thread, Clock& into) {
    if (!on) return;
    into.resize(agents_, 0);
    merge(into, clocks_[thread]);
    clocks_[thread][thread]++;
  }
  void acquire(u32 thread, const Clock& from) {
    if (on) merge(clocks_[thread], from);
  }
  // `thread` knows that `agent` has come to `time`.
  void learn(u32 thread, u32 agent, u32 time) {
    if (on) clocks_[thread][agent] = std::max(clocks_[thread][agent], time);
  }
  void learn(Clock& clock, u32 agent, u32 time) {
    if (!on) return;
    clock.resize(agents_, 0);
    clock[agent] = std::max(clock[agent], time);
  }
  // What `thread` has stored, asynchronous operations may read once they are ordered after it.
  void proxy_fence(u32 thread) {
    if (on) fences_[thread]++;
  }

  // ---- accesses

  void read(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      check_readable(word, i, thread, at);
      note_read(word, {thread, clocks_[thread][thread], at});
    }
  }

  // A read that every lane of the warp gets a part of: all of them must be ordered after the write, not just the lane
  // that gave the address. Lanes learn of one another at once (by sync_warp or a barrier) or not at all, so one more
  // lane tells.
  void read_by_warp(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) check_readable(fresh(i), i, thread ^ 1, at);
    read(thread, address, bytes, at);
  }

  void write(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      check_writable(word, i, thread, at);
      forget_reads(word);
      word.written = true;
      word.fences = fences_[thread];
      word.write = {thread, clocks_[thread][thread], at};
    }
  }

  // Between `copy_issued` and `copy_landed` nobody may touch the words. The copy lands for `thread` alone: others
  // must be ordered after it like after any write.
  void copy_issued(u32 thread, u32 address, u32 bytes, Site at) {
    write(thread, address, bytes, at);
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) words_[i].in_flight = true;
  }
  void copy_landed(u32 thread, u32 address, u32 bytes) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      words_[i].in_flight = false;
      words_[i].write.time = clocks_[thread][thread];
    }
  }

  // ---- accesses of other agents, issued by a thread

  // Done when the agent comes to `time`.
  void write_by_agent(u32 thread, u32 agent, u32 time, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      check_writable(word, i, thread, at);
      forget_reads(word);
      word.written = true;
      word.write = {agent, time, at};
    }
  }
  void read_by_agent(u32 thread, u32 agent, u32 time, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      check_readable(word, i, thread, at);
      const Access& write = word.write;
      if (write.agent < threads_ && fences_[write.agent] == word.fences) {
        fault(at, "asynchronous read of the shared word at byte %u, stored by thread %u at %s:%u without a proxy_fence",
              i * 4, write.agent, file_name(write.at), write.at.line);
      }
      note_read(word, {agent, time, at});
    }
  }

  // Whether `thread` is ordered after the last write, without an access.
  void check_ordered(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) check_readable(fresh(i), i, thread, at);
  }

 private:
  static constexpr u32 NONE = ~0u;

  struct Word {
    u32 block = 0;  // that this tells of, numbered through all launches: in any other, nothing has happened to the word
    bool written = false;
    bool in_flight = false;
    u32 fences = 0;  // of the writing thread, when it wrote
    Access write;
    u32 reads = NONE;  // list of the reads since that write, none ordered before another
  };
  struct Read {
    Access access;
    u32 next;
  };

  static void merge(Clock& into, const Clock& from) {
    u32* a = into.data();
    const u32* b = from.data();
    for (size_t i = 0, n = from.size(); i < n; i++) a[i] = std::max(a[i], b[i]);
  }

  Word& fresh(u32 i) {
    Word& word = words_[i];
    if (word.block != block_) {
      word = Word();
      word.block = block_;
    }
    return word;
  }

  bool ordered(const Access& earlier, u32 thread) const { return clocks_[thread][earlier.agent] >= earlier.time; }

  void check_readable(const Word& word, u32 i, u32 thread, Site at) const {
    if (word.in_flight) conflict("read", "the asynchronous copy in flight", word.write, i, at);
    if (!word.written) fault(at, "read of the shared word at byte %u, which this block has never written", i * 4);
    if (!ordered(word.write, thread)) conflict("read", "the write", word.write, i, at);
  }

  void check_writable(const Word& word, u32 i, u32 thread, Site at) const {
    if (word.in_flight) conflict("write", "the asynchronous copy in flight", word.write, i, at);
    if (word.written && !ordered(word.write, thread)) conflict("write", "the write", word.write, i, at);
    for (u32 r = word.reads; r != NONE; r = reads_[r].next) {
      if (!ordered(reads_[r].access, thread)) conflict("write", "the read", reads_[r].access, i, at);
    }
  }

  [[noreturn]] void conflict(const char* access, const char* other, const Access& earlier, u32 i, Site at) const {
    char by[32] = " by an asynchronous operation";
    if (earlier.agent < threads_) snprintf(by, sizeof by, " by thread %u", earlier.agent);
    fault(at, "race on the shared word at byte %u: this %s is not ordered after %s%s at %s:%u", i * 4, access, other,
          by, file_name(earlier.at), earlier.at.line);
  }

  // Whoever is ordered after a thread's read is ordered after those reads that the thread is ordered after itself:
  // they are dropped. Another agent knows of nothing but its own.
  void note_read(Word& word, const Access& read) {
    u32* link = &word.reads;
    while (*link != NONE) {
      u32 r = *link;
      const Access& earlier = reads_[r].access;
      if (read.agent < threads_ ? ordered(earlier, read.agent) : earlier.agent == read.agent) {
        *link = reads_[r].next;
        reads_[r].next = free_read_;
        free_read_ = r;
      } else {
        link = &reads_[r].next;
      }
    }
    u32 r = free_read_;
    if (r == NONE) {
      r = (u32)reads_.size();
      reads_.emplace_back();
    } else {
      free_read_ = reads_[r].next;
    }
    reads_[r] = {read, word.reads};
    word.reads = r;
  }

  void forget_reads(Word& word) {
    while (word.reads != NONE) {
      u32 r = word.reads;
      word.reads = reads_[r].next;
      reads_[r].next = free_read_;
      free_read_ = r;
    }
  }

  u32 threads_ = 0;
  u32 agents_ = 0;  // threads first
  u32 block_ = 0;
  std::vector<Clock> clocks_;
  std::vector<u32> fences_;
  std::vector<Word> words_;
  std::vector<Read> reads_;  // of all words; the unused ones are a list of their own
  u32 free_read_ = NONE;
};

}  // namespace emulator
