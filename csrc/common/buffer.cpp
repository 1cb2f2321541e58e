#include "common/buffer.h"

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace fastcl {
namespace {

constexpr size_t kMostWaste = 2;  // a kept buffer serves requests down to this fraction of its size

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
  std::vector<Block> blocks;  // the one released last at the end
  size_t bytes = 0;

  Header* remove(size_t i) {
    const Block block = blocks[i];
    blocks.erase(blocks.begin() + std::ptrdiff_t(i));
    bytes -= block.bytes;
    return block.header;
  }
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
    if (blocks[i].bytes >= bytes && blocks[i].bytes / kMostWaste <= bytes) return kept().remove(i);
  }
  return nullptr;
}

bool keep(Header* block) {
  std::unique_lock lock(kept().mutex, std::try_to_lock);
  if (!lock || block->bytes > kMostKeptBytes) return false;
  while (kept().bytes + block->bytes > kMostKeptBytes)
    system_free(kept().remove(0));  // what nobody has asked for longest
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
