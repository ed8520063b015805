// Two warpgroups that make 64 rows of 384 together, half of the columns each: where a thread is, and sums over a row.
//
//                 columns   0 …        192 …
//   rows 0 … 63   ┌──────────┬──────────┐   a thread: 96 sums, 48 columns of rows g and g + 8
//                 │  group 0 │  group 1 │   a row: 4 lanes ─▶ two exchanges, then both groups' halves by shared memory
//                 └──────────┴──────────┘
//
// Invariants: a row is added up in one order, group 0's half first; mean first, squares around it second.
#pragma once
#include "numbers.cuh"
#include "tiles.cuh"

namespace groups {

constexpr int ROWS = 64, HIDDEN = 384, OWN = HIDDEN / 2, GROUP = 128;
constexpr int MET = 1; // the named barrier of both groups; 0 is __syncthreads

// Where this thread is: its group's half of the columns, its warp's 16 rows, its first row and column of them.
struct Place {
  int group, warp, lane;
  DEVICE int row() const { return warp * 16 + lane / 4; }
  DEVICE int column() const { return lane % 4 * 2; }
};

// Adds four lanes' numbers, which share a row, and those of the other group's half of it.
DEVICE void row_sums(float *meeting, float (&sum)[2], const Place &place) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    sum[i] = numbers::quad_sum(sum[i]);
    if (place.lane % 4 == 0)
      meeting[place.group * ROWS + place.row() + i * 8] = sum[i];
  }
  ptx::part_sync(MET, 2 * GROUP);
#pragma unroll
  for (int i = 0; i < 2; i++)
    sum[i] = meeting[place.row() + i * 8] + meeting[ROWS + place.row() + i * 8];
}

// Takes the mean off both rows, whose sums this thread has of its columns; 1 / √(variance + ε) of them. Two places to meet
// at, of 2 · 64 floats.
DEVICE void center(float *sums_meet, float *squares_meet, float (&sums)[OWN / 2], float (&sum)[2], float (&inverse)[2],
                   float epsilon, const Place &place) {
  float squares[2] = {};
  row_sums(sums_meet, sum, place);
#pragma unroll
  for (int n = 0; n < OWN / 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float &low = sums[n * 4 + i * 2], &high = sums[n * 4 + i * 2 + 1];
      low -= sum[i] * (1.0f / HIDDEN); // in place: what is computed anew is kept beside what it was
      high -= sum[i] * (1.0f / HIDDEN);
      squares[i] += low * low + high * high;
    }
  row_sums(squares_meet, squares, place);
  inverse[0] = rsqrtf(squares[0] * (1.0f / HIDDEN) + epsilon);
  inverse[1] = rsqrtf(squares[1] * (1.0f / HIDDEN) + epsilon);
}

} // namespace groups
