#include "common/buffer.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace fastcl {
namespace {

constexpr size_t kKeptBytes = size_t(64) << 20;  // by all released buffers together
constexpr size_t kMostWaste = 2;                 // a kept buffer serves requests down to this fraction of its size

// Stands before the buffer, in a block of its own alignment.
struct Header {
  size_t bytes;  // of the buffer, without the header
};
static_assert(sizeof(Header) <= kBufferAlignment);

void* system_allocate(size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, kBufferAlignment);
#else
  return std::aligned_alloc(kBufferAlignment, bytes);
#endif
}

void system_free(void* block) {
#if defined(_WIN32)
  _aligned_free(block);
#else
  std::free(block);
#endif
}

// What was released; its size stands here too, so that a search touches no block.
struct Block {
  Header* header;
  size_t bytes;
};

struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

Kept& kept() {
  static Kept& instance = *new Kept;  // never destroyed: threads may outlive static objects
  return instance;
}

// Nobody waits for the lock: who does not get it goes to the system. A process forked while it was held never blocks.
Header* take_kept(size_t bytes) {
  std::unique_lock lock(kept().mutex, std::try_to_lock);
  if (!lock) return nullptr;
  auto& blocks = kept().blocks;
  for (size_t i = blocks.size(); i-- > 0;) {
    const Block block = blocks[i];
    if (block.bytes < bytes || block.bytes / kMostWaste > bytes) continue;
    blocks[i] = blocks.back();
    blocks.pop_back();
    kept().bytes -= block.bytes;
    return block.header;
  }
  return nullptr;
}

bool keep(Header* block) {
  std::unique_lock lock(kept().mutex, std::try_to_lock);
  if (!lock || kept().bytes + block->bytes > kKeptBytes) return false;
  try {
    kept().blocks.push_back({block, block->bytes});
  } catch (const std::bad_alloc&) {
    return false;
  }
  kept().bytes += block->bytes;
  return true;
}

}  // namespace

void* acquire_buffer(size_t bytes) {
  bytes = (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  Header* block = take_kept(bytes);
  if (!block) {
    block = static_cast<Header*>(system_allocate(bytes + kBufferAlignment));
    if (!block) throw std::bad_alloc();
    block->bytes = bytes;
  }
  return reinterpret_cast<char*>(block) + kBufferAlignment;
}

void release_buffer(void* data) noexcept {
  if (!data) return;
  auto* block = reinterpret_cast<Header*>(static_cast<char*>(data) - kBufferAlignment);
  if (!keep(block)) system_free(block);
}

}  // namespace fastcl
