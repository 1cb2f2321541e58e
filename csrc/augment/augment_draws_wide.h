// Draws of as many samples as a vector has lanes. Included inside a target region.
#pragma once

#include "augment/augment_draws.h"
#include "augment/augment_rows.h"
#include "common/simd.h"

namespace fastcl {

// The numbers of one sample in each lane of V; see augment_draws.h.
template <class V>
struct SamplesOf {
  using D = typename V::D;
  static constexpr int kLanes = V::kLanes;

  struct Mask {
    uint32_t bits;
    friend FASTCL_INLINE Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
    friend FASTCL_INLINE Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
    friend FASTCL_INLINE Mask operator!(Mask a) { return {~a.bits}; }
  };
  struct Real {
    D v;
    Real() = default;
    FASTCL_INLINE Real(D value) : v(value) {}
    FASTCL_INLINE Real(double value) : v(V::set_wide(value)) {}
    friend FASTCL_INLINE Real operator+(Real a, Real b) { return V::add(a.v, b.v); }
    friend FASTCL_INLINE Real operator-(Real a, Real b) { return V::sub(a.v, b.v); }
    friend FASTCL_INLINE Real operator*(Real a, Real b) { return V::mul(a.v, b.v); }
    friend FASTCL_INLINE Real operator/(Real a, Real b) { return V::div(a.v, b.v); }
    FASTCL_INLINE Real operator-() const { return V::sub(V::set_wide(-0.0), v); }
    friend FASTCL_INLINE Mask operator==(Real a, Real b) { return {V::equal(a.v, b.v)}; }
    friend FASTCL_INLINE Mask operator<(Real a, Real b) { return {V::less(a.v, b.v)}; }
    friend FASTCL_INLINE Mask operator<=(Real a, Real b) { return {V::less_equal(a.v, b.v)}; }
    friend FASTCL_INLINE Mask operator>(Real a, Real b) { return b < a; }
    friend FASTCL_INLINE Mask operator>=(Real a, Real b) { return b <= a; }
  };
  struct Word {
    typename V::I v;
    friend FASTCL_INLINE Word operator^(Word a, Word b) { return {V::xor_int(a.v, b.v)}; }
  };
  struct Product {
    Word high, low;
  };
  // Columns of parameters; `names` has no values.
  struct Row {
    AugmentParams names;
    float column[kParams + kRowStep][kLanes];

    FASTCL_INLINE Row() {
      for (auto& values : column) V::store(values, V::set(0.f));
    }
    FASTCL_INLINE void set(const float& field, Real value) {
      V::store(column[&field - &names.crop_top], V::narrow(value.v));
    }
    // The rows of the first n lanes.
    void write(AugmentParams* params, int64_t n) const {
      for (int64_t from = 0; from < kParams; from += kLanes) {
        typename V::F rows[kLanes];
        FASTCL_UNROLL for (int i = 0; i < kLanes; ++i) rows[i] = V::load(column[from + i]);
        V::transpose(rows);
        for (int64_t i = 0; i < n; ++i) {
          float* to = &params[i].crop_top + from;
          kParams - from >= kLanes ? V::store(to, rows[i]) : V::store_first(to, rows[i], kParams - from);
        }
      }
    }
  };

  static FASTCL_INLINE Word word(uint32_t v) { return {V::set_int(int32_t(v))}; }
  static FASTCL_INLINE Product multiply(Word a, uint32_t b) {
    Product product;
    V::multiply(a.v, b, &product.high.v, &product.low.v);
    return product;
  }
  static FASTCL_INLINE Real number(Word word) {
    return V::add(V::widen(V::xor_int(word.v, V::set_int(INT32_MIN))), V::set_wide(0x1p31));
  }
  static FASTCL_INLINE Real floor(Real v) { return V::floor(v.v); }
  static FASTCL_INLINE Real ceil(Real v) { return -Real(V::floor((-v).v)); }
  static FASTCL_INLINE Real round(Real v) { return V::round(v.v); }
  static FASTCL_INLINE Real sqrt(Real v) { return V::sqrt(v.v); }
  static FASTCL_INLINE Real pow2(Real whole) { return V::pow2(whole.v); }
  static FASTCL_INLINE Real absolute(Real v) { return V::max(v.v, (-v).v); }
  static FASTCL_INLINE Real least(Real a, Real b) { return V::min(a.v, b.v); }
  static FASTCL_INLINE Real most(Real a, Real b) { return V::max(a.v, b.v); }
  static FASTCL_INLINE Mask none() { return {0}; }
  static constexpr uint32_t kAll = (1u << kLanes) - 1;
  static FASTCL_INLINE bool any(Mask m) { return (m.bits & kAll) != 0; }
  static FASTCL_INLINE bool all(Mask m) { return (m.bits & kAll) == kAll; }
  static FASTCL_INLINE Real select(Mask which, Real a, Real b) { return V::select(which.bits, a.v, b.v); }
};

template <class V>
void draw_rows(const AugmentSample& s, int64_t begin, int64_t end) {
  using N = SamplesOf<V>;
  constexpr int kLanes = V::kLanes;
  const AugmentStream& stream = s.stream;
  SizesOf<N> sizes = {double(stream.height), double(stream.width), double(stream.out_height), double(stream.out_width)};
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t n = end - i < kLanes ? end - i : kLanes;
    int32_t low[kLanes], high[kLanes], height[kLanes], width[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      const int64_t at = k < n ? i + k : end - 1;
      low[k] = int32_t(s.index[at]);
      high[k] = int32_t(s.index[at] >> 32);
      if (!s.shapes) continue;
      height[k] = s.shapes[3 * at];
      width[k] = s.shapes[3 * at + 1];
    }
    if (s.shapes) {
      sizes.height = V::widen(V::load_int(height));
      sizes.width = V::widen(V::load_int(width));
    }
    Draws<N> u(stream, uint32_t(s.recipe.pass), {V::load_int(low)}, {V::load_int(high)});
    typename N::Row rows;
    draw_row<N>(s.recipe, sizes, u, rows);
    rows.write(s.params + i, n);
  }
}

}  // namespace fastcl
