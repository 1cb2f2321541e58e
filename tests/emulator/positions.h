// Fragment layouts, from the PTX ISA, "Matrix fragments for mma.*": with group = lane / 4 and member = lane % 4, a
// register of E elements (E = 1 TF32, 2 of 16 bit, 4 of 8 bit) holds, from the lowest bits up,
//
//   A, register r     row group + 8 * (r & 1), columns (r >> 1) * 4E + member * E ...
//   B, register r     rows r * 4E + member * E ..., column group
//   C and D, value v  row group + 8 * (v >> 1), column member * 2 + (v & 1)
//
// layouts/fragment_layouts.cpp compares these with CuTe's.
#pragma once

namespace fastcl::emulator {

struct Position {
  int row, column;
};
template <int kElements>
constexpr Position a_position(int lane, int r, int element) {
  return {lane / 4 + 8 * (r & 1), (r >> 1) * 4 * kElements + (lane % 4) * kElements + element};
}
template <int kElements>
constexpr Position b_position(int lane, int r, int element) {
  return {r * 4 * kElements + (lane % 4) * kElements + element, lane / 4};
}
constexpr Position c_position(int lane, int value) {
  return {lane / 4 + 8 * (value >> 1), (lane % 4) * 2 + (value & 1)};
}
// Of matrix `matrix` of ldmatrix, in that register: which element (lane, 16-bit half) gets.
constexpr Position ldmatrix_position(int lane, int half, bool transposed) {
  return transposed ? Position{(lane % 4) * 2 + half, lane / 4} : Position{lane / 4, (lane % 4) * 2 + half};
}

}  // namespace fastcl::emulator
