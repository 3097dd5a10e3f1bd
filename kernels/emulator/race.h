// Happens-before race detection on shared memory.
//
// Every thread has a vector clock: what it knows of each agent's progress. Barriers merge the clocks of those who
// meet. Two accesses race if neither agent knew of the other's: that follows from the kernel's synchronisation alone,
// so a race is found under a schedule where it does no harm. (FastTrack, Flanagan and Freund 2009, without its
// compression of reads to one epoch.)
//
// Threads and memory are those of all blocks of a cluster. The same shadow memory tells words that were never written,
// and words that a copy in flight will write.
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

// A few words of a report. Not a std::string: a fault abandons the stack, and nothing there is destroyed.
struct Words {
  char text[64];
};

class RaceDetector {
 public:
  bool on = false;

  void start_launch(bool detect, u32 blocks, u32 block_threads, u32 block_bytes) {
    on = detect;
    if (!on) return;
    threads_ = blocks * block_threads;
    block_threads_ = block_threads;
    block_bytes_ = block_bytes;
    clocks_.resize(threads_);
    if (words_.size() < blocks * block_bytes / 4) words_.resize(blocks * block_bytes / 4);
  }

  void start_cluster() {
    if (!on) return;
    cluster_++;
    agents_ = threads_;
    fences_.assign(threads_, std::vector<u32>());
    reads_.clear();
    free_read_ = NONE;
    seen_by_ = NONE;
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
  // Up to where `thread` knows `agent` to have come.
  u32 known(u32 thread, u32 agent) const { return on ? clocks_[thread][agent] : 0; }
  // What `thread` has stored, asynchronous operations may read if whoever issues them is ordered after this.
  void proxy_fence(u32 thread) {
    if (on) fences_[thread].push_back(clocks_[thread][thread]);
  }

  // The thread's last step so far.
  Access step(u32 thread, Site at) const { return {thread, on ? clocks_[thread][thread] : 0, at}; }
  // Whether those whose clock it is know of the access.
  bool knows(const Clock& clock, const Access& access) const {
    return !on || access.time == 0 || (access.agent < clock.size() && clock[access.agent] >= access.time);
  }
  // An agent in words.
  Words name(u32 agent) const {
    if (agent >= threads_) return {"an asynchronous operation"};
    return in_block("thread %u", agent % block_threads_, agent / block_threads_);
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

  // Likewise a write of what all lanes of the warp bring.
  void write_by_warp(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) check_writable(fresh(i), i, thread ^ 1, at);
    write(thread, address, bytes, at);
  }

  void write(u32 thread, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      check_writable(word, i, thread, at);
      forget_reads(word);
      word.written = true;
      word.fences = (u32)fences_[thread].size();
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
      if (word.written) check_fenced("write over", word, i, thread, at);
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
      check_fenced("read of", word, i, thread, at);
      note_read(word, {agent, time, at});
    }
  }
  // Issued by four warps, of which `first` is the first thread. All must be ordered after the write: of each warp its
  // last lane stands for it, which is seldom the one that a kernel elects to wait for the others.
  void read_by_warpgroup(u32 first, u32 agent, u32 time, u32 address, u32 bytes, Site at) {
    if (!on) return;
    for (u32 i = address / 4; i < (address + bytes) / 4; i++) {
      Word& word = fresh(i);
      // What one copy wrote is looked at once.
      const Access& write = word.write;
      const bool same = word.written && write.agent >= threads_ && write.agent == seen_.agent &&
                        write.time == seen_.time && first == seen_by_;
      if (!same) {
        for (u32 thread = first + 31; thread < first + 128; thread += 32) {
          check_readable(word, i, thread, at);
          check_fenced("read of", word, i, thread, at);
        }
        seen_ = write;
        seen_by_ = first;
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
    u32 cluster = 0;  // that this tells of, numbered through all launches: in others, nothing has happened to the word
    bool written = false;
    bool in_flight = false;
    u32 fences = 0;  // of the writing thread, before it wrote
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
    if (word.cluster != cluster_) {
      word = Word();
      word.cluster = cluster_;
    }
    return word;
  }

  bool ordered(const Access& earlier, u32 thread) const { return clocks_[thread][earlier.agent] >= earlier.time; }

  void check_readable(const Word& word, u32 i, u32 thread, Site at) const {
    if (word.in_flight) conflict("read", "the asynchronous copy in flight", word.write, i, at);
    if (!word.written) fault(at, "read of the shared word at %s, which this block has never written", place(i).text);
    if (!ordered(word.write, thread)) conflict("read", "the write", word.write, i, at);
  }

  void check_writable(const Word& word, u32 i, u32 thread, Site at) const {
    if (word.in_flight) conflict("write", "the asynchronous copy in flight", word.write, i, at);
    if (word.written && !ordered(word.write, thread)) conflict("write", "the write", word.write, i, at);
    for (u32 r = word.reads; r != NONE; r = reads_[r].next) {
      if (!ordered(reads_[r].access, thread)) conflict("write", "the read", reads_[r].access, i, at);
    }
  }

  // The first fence since the write must be there, and `thread` ordered after it.
  void check_fenced(const char* access, const Word& word, u32 i, u32 thread, Site at) const {
    const u32 writer = word.write.agent;
    if (writer >= threads_) return;
    const std::vector<u32>& fences = fences_[writer];
    if (word.fences < fences.size() && fences[word.fences] <= clocks_[thread][writer]) return;
    fault(at, "asynchronous %s the shared word at %s, stored by %s at %s:%u without a proxy_fence%s", access,
          place(i).text, name(writer).text, file_name(word.write.at), word.write.at.line,
          word.fences < fences.size() ? " before what orders the two" : "");
  }

  Words place(u32 i) const { return in_block("byte %u", i * 4 % block_bytes_, i * 4 / block_bytes_); }

  // The block's number is worth telling only if there are several.
  Words in_block(const char* format, u32 number, u32 block) const {
    Words words;
    int length = snprintf(words.text, sizeof words.text, format, number);
    if (threads_ > block_threads_) {
      snprintf(words.text + length, sizeof words.text - (size_t)length, " of the cluster's block %u", block);
    }
    return words;
  }

  [[noreturn]] void conflict(const char* access, const char* other, const Access& earlier, u32 i, Site at) const {
    fault(at, "race on the shared word at %s: this %s is not ordered after %s by %s at %s:%u", place(i).text, access,
          other, name(earlier.agent).text, file_name(earlier.at), earlier.at.line);
  }

  // Whoever is ordered after a thread's read is ordered after those reads that the thread is ordered after itself:
  // they are dropped. Another agent knows of nothing but its own.
  void note_read(Word& word, const Access& read) {
    u32* link = &word.reads;
    if (read.agent >= threads_ && *link != NONE && reads_[*link].access.agent == read.agent) {
      reads_[*link].access = read;
      return;
    }
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
  u32 block_threads_ = 0;
  u32 block_bytes_ = 0;
  u32 agents_ = 0;  // threads first
  u32 cluster_ = 0;
  std::vector<Clock> clocks_;
  std::vector<std::vector<u32>> fences_;  // of each thread, when
  Access seen_;                           // write that the warpgroup of thread `seen_by_` was found to be ordered after
  u32 seen_by_ = NONE;
  std::vector<Word> words_;
  std::vector<Read> reads_;  // of all words; the unused ones are a list of their own
  u32 free_read_ = NONE;
};

}  // namespace emulator
