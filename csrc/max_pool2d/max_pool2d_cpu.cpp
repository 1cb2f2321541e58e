#include "common/parallel.h"
#include "common/portable.h"
#include "max_pool2d/max_pool2d.h"

namespace fastcl {
namespace {

// Of kCount neighbouring channels. The result is x only where that is larger or NaN: once NaN, it stays.
template <int kCount, class T>
FASTCL_INLINE void pool_window(const T* x, int64_t lines, int64_t pitch, int64_t columns, int64_t channels,
                               T* __restrict y) {
  for (int i = 0; i < kCount; ++i) y[i] = x[i];
  for (int64_t v = 0; v < lines; ++v)
    for (int64_t u = 0; u < columns; ++u) {
      const T* other = x + v * pitch + u * channels;
#pragma GCC unroll 1  // unrolled, it would be scalars, not vectors
      for (int i = 0; i < kCount; ++i) y[i] = (other[i] > y[i]) | (other[i] != other[i]) ? other[i] : y[i];
    }
}

template <class T>
FASTCL_INLINE void pool_line(const MaxPool2d& p, const T* image, int64_t i, T* y) {
  constexpr int kWide = 64 / int(sizeof(T)), kNarrow = 16 / int(sizeof(T));
  const int64_t channels = p.channels, pitch = p.width * channels, lines = p.rows[2 * i + 1] - p.rows[2 * i];
  for (int64_t j = 0; j < p.out_width; ++j, y += channels) {
    const T* x = image + p.rows[2 * i] * pitch + p.columns[2 * j] * channels;
    const int64_t columns = p.columns[2 * j + 1] - p.columns[2 * j];
    int64_t c = 0;
    for (; c + kWide <= channels; c += kWide) pool_window<kWide>(x + c, lines, pitch, columns, channels, y + c);
    for (; c + kNarrow <= channels; c += kNarrow) pool_window<kNarrow>(x + c, lines, pitch, columns, channels, y + c);
    for (; c < channels; ++c) pool_window<1>(x + c, lines, pitch, columns, channels, y + c);
  }
}

FASTCL_MULTIVERSION void pool_uint8(const MaxPool2d& p, const uint8_t* image, int64_t i, uint8_t* y) {
  pool_line(p, image, i, y);
}

FASTCL_MULTIVERSION void pool_float(const MaxPool2d& p, const float* image, int64_t i, float* y) {
  pool_line(p, image, i, y);
}

template <class T, class Pool>
void each_line(const MaxPool2d& p, Pool pool) {
  const int64_t pitch = p.width * p.channels, out_pitch = p.out_width * p.channels;
  parallel_for(p.batch * p.out_height, grain_of(2 * pitch * int64_t(sizeof(T)) / 4), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pool(p, static_cast<const T*>(p.x) + i / p.out_height * p.height * pitch, i % p.out_height,
           static_cast<T*>(p.y) + i * out_pitch);
  });
}

}  // namespace

void max_pool2d_uint8(const MaxPool2d& p) { each_line<uint8_t>(p, pool_uint8); }
void max_pool2d_float(const MaxPool2d& p) { each_line<float>(p, pool_float); }

}  // namespace fastcl
