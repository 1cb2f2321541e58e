#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>

#include "common/cpu.h"
#include "common/parallel.h"
#include "contrast/contrast.h"
#include "contrast/contrast_tiles.h"

namespace fastcl {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
// Up to this logit 2^x needs no reference: e^50 times 2^20 terms stays in float32's range, and so does its inverse.
constexpr float kLargestPlainLogit = 50.f;
constexpr int kTilesWanted = 10;  // blocks of rows that keep a handful of threads busy
constexpr int64_t kMinGroup = 4;
constexpr int64_t kThreadFlop = 16 << 20;  // of a thread in one pass, at least: fewer are done before another has woken
constexpr int kSpins = 5000;               // of waiting, some hundred microseconds, before a thread sleeps

// Of a processor's cache, or what is usual.
int64_t cache_bytes(int level) {
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
  const int64_t bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return level == 2 ? 2 << 20 : 30 << 20;
}

// Of a tile and its rows; its keys and its results pass by a panel at a time.
int64_t scratch_bytes() {
  static const int64_t bytes = cache_bytes(2) / 2;
  return bytes;
}

// Of blocks that are visited together: two groups fit in L3. The larger, the further a thread can go on while another
// one has lost its processor in the middle of a tile; beyond some, that is as long as a time slice.
int64_t group_bytes() {
  static const int64_t bytes = std::clamp<int64_t>(cache_bytes(3) / 5, 6 << 20, 24 << 20);
  return bytes;
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

const ContrastKernels& float32_kernels() {
  static const ContrastKernels* best = contrast_kernels_avx512() ? contrast_kernels_avx512()
                                       : contrast_kernels_avx2() ? contrast_kernels_avx2()
                                                                 : contrast_kernels_portable();
  return *best;
}

const ContrastKernels& kernels_for(bool bf16_products) {
  return bf16_products && contrast_kernels_avx512_bf16() ? *contrast_kernels_avx512_bf16() : float32_kernels();
}

int64_t least_common_multiple(int64_t a, int64_t b) {
  int64_t x = a, y = b;
  while (y) {
    const int64_t rest = x % y;
    x = y;
    y = rest;
  }
  return a / x * b;
}

enum class Pass { kMaxima, kSums, kGradient };

// What one thread writes while it works on a tile.
struct Scratch {
  Buffer<float> g_rows, g_cols, panel;
  float row_out[kMaxTile], col_out[kMaxTile];
};

// One forward or backward pass over the tiles. Threads take tiles from one fixed order; each block of rows or columns
// takes its updates in that order too, by a counter of its turns, so that every sum is formed in the same order on any
// number of threads, with one copy of the result and no barrier. A thread forms its tile before it waits for its turn.
class TilePass {
 public:
  TilePass(const Contrast& problem, const ContrastKernels& kernels)
      : p_(problem),
        kernels_(kernels),
        q_(*problem.q),
        k_(problem.k ? *problem.k : *problem.q),
        symmetric_(problem.k == nullptr),
        safe_(!(problem.largest_logit <= kLargestPlainLogit)),
        words_(q_.stride() / kernels.pack),
        tile_(choose_tile()),
        row_blocks_((q_.padded_count() + tile_ - 1) / tile_),
        col_blocks_((k_.count() + tile_ - 1) / tile_),
        row_turn_(row_blocks_),
        col_turn_(symmetric_ ? 0 : col_blocks_) {
    if (p_.period) {
      period_groups_.resize(std::max(q_.count(), k_.count()) + kGroupPadding);
      for (size_t i = 0; i < period_groups_.size(); ++i) period_groups_[i] = static_cast<int32_t>(i % p_.period);
    } else if (p_.q_group) {
      row_ranges_ = group_ranges(*p_.q_group, q_.count());
      if (!symmetric_) col_ranges_ = group_ranges(*p_.k_group, k_.count());
    }
  }

  void forward(const ContrastForward& out) {
    kept_ = safe_ ? nullptr : out.kept;
    pack_operands();
    columns_ = symmetric_ || out.col_lse != nullptr;
    const float start = safe_ ? -std::numeric_limits<float>::infinity() : 0.f;
    row_reference_.assign(q_.padded_count() + kMaxTile, start);
    col_reference_.assign(symmetric_ ? 0 : k_.padded_count() + kMaxTile, start);
    row_sum_.assign(q_.padded_count() + kMaxTile, 0.0);
    col_sum_.assign(symmetric_ ? 0 : k_.padded_count() + kMaxTile, 0.0);
    if (safe_) run(Pass::kMaxima);
    run(Pass::kSums);
    for (int64_t i = 0; i < q_.count(); ++i) out.row_lse[i] = log_sum(row_sum_[i], row_reference_[i]);
    if (!symmetric_ && out.col_lse)
      for (int64_t j = 0; j < k_.count(); ++j) out.col_lse[j] = log_sum(col_sum_[j], col_reference_[j]);
  }

  void backward(const ContrastBackward& out) {
    kept_ = safe_ ? nullptr : const_cast<float*>(out.kept);  // not written here
    if (!kept_) pack_operands();
    columns_ = symmetric_ || out.col_lse != nullptr;
    set_weights(out.row_lse, out.grad_row, q_, row_weight_, row_lse_);
    if (!symmetric_ && columns_) set_weights(out.col_lse, out.grad_col, k_, col_weight_, col_lse_);
    grad_q_ = out.grad_q;
    grad_k_ = symmetric_ ? out.grad_q : out.grad_k;
    if (q_.count() == 0 || k_.count() == 0) {  // no tile, which would write them
      if (grad_q_) std::fill_n(grad_q_, q_.floats(), 0.f);
      if (grad_k_) std::fill_n(grad_k_, k_.floats(), 0.f);
    }
    run(Pass::kGradient);
  }

 private:
  static double log_sum(double sum, double reference) {
    return sum > 0 ? std::log(sum) + reference * kLn2 : -std::numeric_limits<double>::infinity();
  }

  // Large tiles save memory traffic, small ones leave enough of them to share out. Depends on the problem and the
  // processor, never on the threads: the tile fixes the order of the sums.
  int64_t choose_tile() const {
    const int64_t step = least_common_multiple(kernels_.rows_step, kernels_.cols_step);
    const int64_t rows = std::max(q_.padded_count(), k_.padded_count());
    int64_t tile = kMaxTile / step * step;
    const auto bytes = [&](int64_t t) { return int64_t(sizeof(float)) * t * (t + q_.stride()); };
    while (tile > 2 * step && (rows < kTilesWanted * tile || bytes(tile) > scratch_bytes())) tile -= step;
    return tile;
  }

  // The least and the largest group of a block: blocks whose ranges do not meet have no pair of one group.
  struct GroupRange {
    int32_t low, high;
  };

  std::vector<GroupRange> group_ranges(const std::vector<int32_t>& groups, int64_t count) const {
    std::vector<GroupRange> ranges;
    for (int64_t begin = 0; begin < count; begin += tile_) {
      const auto [low, high] =
          std::minmax_element(groups.begin() + begin, groups.begin() + std::min(begin + tile_, count));
      ranges.push_back({*low, *high});
    }
    return ranges;
  }

  void pack_operands() {
    const int64_t step = kernels_.cols_step, count = (k_.count() + step - 1) / step;
    panels_ = Buffer<float>(count * words_ * step);
    const float factor = static_cast<float>(p_.scale * kLog2E);
    parallel_for(count, grain_of(step * q_.stride()), [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel)
        kernels_.pack_panel(k_.row(0), k_.count(), k_.stride(), panel, factor, panels_.get() + panel * words_ * step);
    });
    if (kernels_.pack == 1) return;
    rows_as_words_ = Buffer<float>(q_.padded_count() * words_);
    parallel_for(q_.padded_count(), grain_of(q_.stride()), [&](int64_t begin, int64_t end) {
      kernels_.pack_words(q_.row(begin), end - begin, q_.stride(), rows_as_words_.get() + begin * words_);
    });
  }

  // Padding has weight 0. A row without a pair has lse -inf, and nothing to weigh.
  void set_weights(const float* lse, const float* grad, const PaddedRows& rows, std::vector<float>& weight,
                   std::vector<float>& log2_sum) const {
    weight.assign(rows.padded_count() + kMaxTile, 0.f);
    log2_sum.assign(rows.padded_count() + kMaxTile, 0.f);
    for (int64_t i = 0; i < rows.count(); ++i) {
      if (lse[i] == -std::numeric_limits<float>::infinity()) continue;
      log2_sum[i] = static_cast<float>(lse[i] * kLog2E);
      const double scaled = double(p_.scale) * grad[i];
      weight[i] = static_cast<float>(safe_ ? scaled : scaled * std::exp(-double(lse[i])));
    }
  }

  void run(Pass pass) {
    for (auto& turn : row_turn_) turn.store(0, std::memory_order_relaxed);
    for (auto& turn : col_turn_) turn.store(0, std::memory_order_relaxed);
    next_tile_.store(0);
    const int64_t tiles = row_blocks_ * (symmetric_ ? row_blocks_ + 1 : 2 * col_blocks_) / 2;
    const int64_t flop = (pass == Pass::kGradient ? 6 : 2) * tiles * tile_ * tile_ * q_.stride();
    const int64_t threads = std::min<int64_t>({thread_count(), tiles, std::max<int64_t>(1, flop / kThreadFlop)});
    std::vector<std::unique_ptr<Scratch>> scratch(threads);
    for (auto& each : scratch) each = new_scratch(pass);
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) work(pass, *scratch[thread]);
    });
  }

  std::unique_ptr<Scratch> new_scratch(Pass pass) const {
    auto scratch = std::make_unique<Scratch>();
    if (pass != Pass::kGradient) return scratch;
    scratch->g_rows = Buffer<float>(tile_ * (tile_ + kSkew));
    if (kernels_.pack > 1) scratch->g_cols = Buffer<float>(tile_ / kernels_.pack * (tile_ + kSkew));
    scratch->panel = Buffer<float>(tile_ / kernels_.pack * kernels_.product_cols);
    return scratch;
  }

  void work(Pass pass, Scratch& scratch) {
    std::vector<int> row_updates(row_blocks_, 0), col_updates(symmetric_ ? 0 : col_blocks_, 0);
    std::vector<int>& others = symmetric_ ? row_updates : col_updates;
    int64_t number = 0, mine = next_tile_.fetch_add(1);
    for_each_tile([&](int64_t I, int64_t J) {
      const bool diagonal = symmetric_ && I == J;
      const int row_turn = row_updates[I]++;
      const int col_turn = diagonal ? row_turn : others[J]++;
      if (number++ != mine) return;
      if (pass == Pass::kGradient)
        gradient_tile(scratch, I, J, row_turn, col_turn);
      else
        forward_tile(pass, scratch, I, J, row_turn, col_turn);
      mine = next_tile_.fetch_add(1);
    });
  }

  // All tiles, in the order that fixes every sum. Blocks come in groups, so that two groups stay in L3; inside a pair
  // of groups neighbours in the order touch different blocks, so that threads hardly ever wait for each other.
  template <class Visit>
  void for_each_tile(Visit visit) const {
    const int64_t block_bytes = 3 * tile_ * q_.stride() * int64_t(sizeof(float));
    const int64_t group = std::max(kMinGroup, group_bytes() / block_bytes);
    for (int64_t a = 0; a < row_blocks_; a += group)
      for (int64_t b = symmetric_ ? a : 0; b < col_blocks_; b += group) {
        const int64_t rows = std::min(group, row_blocks_ - a), cols = std::min(group, col_blocks_ - b);
        const int64_t rounds = std::max(rows, cols);
        const bool triangle = symmetric_ && a == b;
        for (int64_t c = 0; c < rounds; ++c)
          for (int64_t i = 0; i < rows; ++i) {
            const int64_t j = triangle ? (c - i + rounds) % rounds : (c + i) % rounds;
            if (j < cols && (!triangle || i <= j)) visit(a + i, b + j);
          }
      }
  }

  int64_t kept_cols() const { return round_up(k_.count(), kernels_.cols_step); }

  std::atomic<int>& col_turn(int64_t J) { return symmetric_ ? row_turn_[J] : col_turn_[J]; }

  // Spins for a moment, then sleeps: an idle processor can then take over the thread that is waited for, should another
  // process have taken its own.
  static void wait(const std::atomic<int>& turn, int mine) {
    int now, spins = 0;
    while ((now = turn.load(std::memory_order_acquire)) != mine)
      if (++spins > kSpins)
        turn.wait(now, std::memory_order_acquire);
      else
        cpu_relax();
  }

  static void pass_on(std::atomic<int>& turn, int mine) {
    turn.store(mine + 1, std::memory_order_release);
    turn.notify_all();
  }

  // Whether a tile holds padding, or a pair that is left out.
  bool is_masked(int64_t I, int64_t J) const {
    const int64_t i0 = I * tile_, j0 = J * tile_;
    if (i0 + tile_ > q_.count() || j0 + tile_ > k_.count()) return true;
    if (!p_.period) {
      if (!p_.q_group) return false;
      const GroupRange &rows = row_ranges_[I], &cols = symmetric_ ? row_ranges_[J] : col_ranges_[J];
      return rows.low <= cols.high && cols.low <= rows.high;
    }
    // i - j runs over (i0 - j0 - tile, i0 - j0 + tile): is there a multiple of the period?
    const int64_t low = i0 - j0 - tile_ + 1, high = i0 - j0 + tile_ - 1;
    return low <= 0 ? high >= 0 || (-low) / p_.period * p_.period >= -high : high / p_.period * p_.period >= low;
  }

  Tile make_tile(Scratch& scratch, int64_t I, int64_t J) const {
    const int64_t i0 = I * tile_, j0 = J * tile_;
    const int64_t cols = std::min<int64_t>(tile_, k_.count() - j0);
    const auto group = [&](const std::vector<int32_t>* groups, int64_t at) -> const int32_t* {
      if (p_.period) return period_groups_.data() + at;
      return groups ? groups->data() + at : nullptr;
    };
    Tile t{};
    if (panels_.get()) {  // else the similarities were kept
      t.a = (kernels_.pack == 1 ? q_.row(0) : rows_as_words_.get()) + i0 * words_;
      t.b = panels_.get() + j0 * words_;
    }
    t.words = static_cast<int>(words_);
    t.rows = static_cast<int>(std::min(tile_, q_.padded_count() - i0));
    t.cols = static_cast<int>(round_up(cols, kernels_.cols_step));
    t.triangle = symmetric_ && I == J;
    t.i0 = i0;
    t.j0 = j0;
    t.live_rows = q_.count();
    t.live_cols = k_.count();
    t.row_group = group(p_.q_group, i0);
    t.col_group = group(symmetric_ ? p_.q_group : p_.k_group, j0);
    if (kept_) t.kept = kept_ + i0 * kept_cols() + t.rows * j0;
    t.row_out = scratch.row_out;
    t.col_out = scratch.col_out;
    return t;
  }

  void forward_tile(Pass pass, Scratch& scratch, int64_t I, int64_t J, int row_turn, int col_turn_number) {
    Tile t = make_tile(scratch, I, J);
    std::vector<float>& col_reference = symmetric_ ? row_reference_ : col_reference_;
    std::vector<double>& col_sum = symmetric_ ? row_sum_ : col_sum_;
    t.row_reference = row_reference_.data() + t.i0;
    t.col_reference = col_reference.data() + t.j0;
    const bool masked = is_masked(I, J);
    if (pass == Pass::kMaxima)
      kernels_.maxima(t, masked, columns_);
    else
      kernels_.sums(t, masked, columns_, safe_);
    const auto update = [&](const float* values, int64_t first, int count, std::vector<float>& reference,
                            std::vector<double>& sum) {
      for (int i = 0; i < count; ++i)
        if (pass == Pass::kMaxima)
          reference[first + i] = std::max(reference[first + i], values[i]);
        else
          sum[first + i] += values[i];
    };
    wait(row_turn_[I], row_turn);
    update(scratch.row_out, t.i0, t.rows, row_reference_, row_sum_);
    if (t.triangle) update(scratch.col_out, t.j0, t.cols, row_reference_, row_sum_);
    pass_on(row_turn_[I], row_turn);
    if (t.triangle) return;
    wait(col_turn(J), col_turn_number);
    if (columns_) update(scratch.col_out, t.j0, t.cols, col_reference, col_sum);
    pass_on(col_turn(J), col_turn_number);
  }

  void gradient_tile(Scratch& scratch, int64_t I, int64_t J, int row_turn, int col_turn_number) {
    const int pack = kernels_.pack;
    const int64_t dim = q_.stride();
    Tile t = make_tile(scratch, I, J);
    t.row_weight = row_weight_.data() + t.i0;
    t.row_lse = row_lse_.data() + t.i0;
    if (columns_) {
      t.col_weight = (symmetric_ ? row_weight_ : col_weight_).data() + t.j0;
      t.col_lse = (symmetric_ ? row_lse_ : col_lse_).data() + t.j0;
    }
    t.g_rows = scratch.g_rows.get();
    t.g_cols = scratch.g_cols.get();
    t.ld_rows = static_cast<int>(tile_ / pack + kSkew);
    t.ld_cols = static_cast<int>(tile_ + kSkew);
    kernels_.gradient(t, is_masked(I, J), columns_, safe_);

    const int keys = static_cast<int>(std::min<int64_t>(t.cols, k_.padded_count() - t.j0));
    float* panel = scratch.panel.get();
    wait(row_turn_[I], row_turn);
    if (grad_q_)
      kernels_.product({t.g_rows, t.ld_rows, 1, k_.row(t.j0), keys / pack, panel, grad_q_ + t.i0 * dim, t.rows, dim,
                        t.triangle ? Part::kDiagonalAndAbove : Part::kWhole, row_turn == 0});
    if (!t.triangle) {
      pass_on(row_turn_[I], row_turn);
      wait(col_turn(J), col_turn_number);
    }
    if (grad_k_)
      kernels_.product({pack == 1 ? t.g_rows : t.g_cols, 1, pack == 1 ? t.ld_rows : t.ld_cols, q_.row(t.i0),
                        t.rows / pack, panel, grad_k_ + t.j0 * dim, keys, dim, t.triangle ? Part::kAbove : Part::kWhole,
                        !t.triangle && col_turn_number == 0});
    pass_on(col_turn(J), col_turn_number);
  }

  const Contrast& p_;
  const ContrastKernels& kernels_;
  const PaddedRows& q_;
  const PaddedRows& k_;
  const bool symmetric_, safe_;
  bool columns_ = false;
  const int64_t words_, tile_, row_blocks_, col_blocks_;
  std::vector<std::atomic<int>> row_turn_, col_turn_;
  std::vector<int32_t> period_groups_;
  std::vector<GroupRange> row_ranges_, col_ranges_;
  std::atomic<int64_t> next_tile_{0};
  Buffer<float> panels_, rows_as_words_;
  std::vector<float> row_reference_, col_reference_, row_weight_, col_weight_, row_lse_, col_lse_;
  std::vector<double> row_sum_, col_sum_;
  float* kept_ = nullptr;
  float* grad_q_ = nullptr;
  float* grad_k_ = nullptr;
};

}  // namespace

PaddedRows::PaddedRows(int64_t count, int64_t dim, float* data)
    : count_(count),
      dim_(dim),
      padded_count_(round_up(count, float32_kernels().rows_step)),
      stride_(round_up(dim, float32_kernels().dim_step)),
      data_(data) {}

PaddedRows::PaddedRows(int64_t count, int64_t dim) : PaddedRows(count, dim, nullptr) {
  own_ = Buffer<float>(floats());
  data_ = own_.get();
  clear_padding();
}

void PaddedRows::clear_padding() {
  if (dim_ != stride_)
    for (int64_t i = 0; i < count_; ++i) std::fill(row(i) + dim_, row(i) + stride_, 0.f);
  std::fill(row(count_), row(0) + floats(), 0.f);
}

float dot_rows(const float* a, const float* b, int64_t stride) { return float32_kernels().dot(a, b, stride); }
void add_scaled_row(float* row, const float* x, float factor, int64_t stride) {
  float32_kernels().add_scaled(row, x, factor, stride);
}
void scale_row(float* row, float factor, int64_t stride) { float32_kernels().scale(row, factor, stride); }

int64_t contrast_kept_floats(int64_t rows, int64_t cols, bool bf16_products) {
  return PaddedRows(rows, 1, nullptr).padded_count() * round_up(cols, kernels_for(bf16_products).cols_step);
}

void contrast_forward(const Contrast& problem, const ContrastForward& out) {
  TilePass(problem, kernels_for(problem.bf16_products)).forward(out);
}

void contrast_backward(const Contrast& problem, const ContrastBackward& out) {
  TilePass(problem, kernels_for(problem.bf16_products)).backward(out);
}

const char* contrast_instruction_set() {
  if (contrast_kernels_avx512()) return contrast_kernels_avx512_bf16() ? "AVX-512, bfloat16 products" : "AVX-512";
  return contrast_kernels_avx2() ? "AVX2" : "portable";
}

}  // namespace fastcl
