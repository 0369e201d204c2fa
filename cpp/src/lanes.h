// Vectors as wide as the instruction set at hand: the vocabulary of the files *_kernels.cpp, which
// are compiled once per set. The vector types are GCC's and Clang's, so that operators, comparisons
// and `?:` work on whole vectors and one source serves every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "fastrcnn_engine/semantics/half.h"

#ifndef FRCNN_SET
#error "a file *_kernels.cpp is compiled once per instruction set, with FRCNN_SET naming it"
#endif

#define FRCNN_INLINE [[gnu::always_inline]] inline

namespace fastrcnn_engine::cpu::FRCNN_SET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T, int Lanes = kLanes<T>>
using Vector = typename VectorOf<T, Lanes>::type;

// The integer of the same width: what comparisons of vectors give, and what indices are held in.
template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 8, int64_t,
                                   std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;

// Through memcpy: no alignment is asked for, and the compiler makes it one instruction.
template <typename V>
FRCNN_INLINE V load_as(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
FRCNN_INLINE Vector<T> load(const T* from) {
  return load_as<Vector<T>>(from);
}

template <typename T>
FRCNN_INLINE void store(T* to, const Vector<T>& v) {
  std::memcpy(to, &v, sizeof(v));
}

template <int Lanes, typename T>
FRCNN_INLINE Vector<T, Lanes> splat(T value) {
  return value - Vector<T, Lanes>{};  // minus zero keeps the sign of a zero, plus does not
}

// A vector in a register. Of one that is used twice, GCC would make two reads of memory.
template <typename V>
FRCNN_INLINE V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// a > b ? a : b, lane by lane. The instruction says just this: b where they are equal or one is NaN. Where
// the comparison itself is wanted too, compilers do not think of it.
template <typename T, int Lanes>
FRCNN_INLINE Vector<T, Lanes> larger(const Vector<T, Lanes>& a, const Vector<T, Lanes>& b) {
#if defined(__x86_64__)
  constexpr int bytes = sizeof(a);
  constexpr bool f32 = std::is_same_v<T, float>, f64 = std::is_same_v<T, double>;
#if defined(__AVX512BW__)
  if constexpr (bytes == 64 && f32) return _mm512_max_ps(a, b);
  if constexpr (bytes == 64 && f64) return _mm512_max_pd(a, b);
  if constexpr (bytes == 64 && std::is_same_v<T, int16_t>)
    return (Vector<T, Lanes>)_mm512_max_epi16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
  if constexpr (bytes == 32 && f32) return _mm256_max_ps(a, b);
  if constexpr (bytes == 32 && f64) return _mm256_max_pd(a, b);
#endif
  if constexpr (bytes == 16 && f32) return _mm_max_ps(a, b);
  if constexpr (bytes == 16 && f64) return _mm_max_pd(a, b);
#endif
  return a > b ? a : b;
}

// The lanes in which a comparison of vectors of T holds; several may be joined by |. AVX-512 has registers of
// bits for it, and compilers that are given vectors take the bits to one and back.
#if defined(__AVX512F__)
template <typename T>
using Holds = unsigned;
#else
template <typename T>
using Holds = Vector<IndexOf<T>>;
#endif

template <typename T>
FRCNN_INLINE Holds<T> above(const Vector<T>& a, const Vector<T>& b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
  else return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
#else
  return a > b;
#endif
}

template <typename T>
FRCNN_INLINE Holds<T> at_least(const Vector<T>& a, const Vector<T>& b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
  else return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ);
#else
  return a >= b;
#endif
}

#if defined(__AVX512F__)
// The lanes in which two vectors of numbers of cells are equal.
FRCNN_INLINE Holds<float> equal(const Vector<int32_t>& a, const Vector<int32_t>& b) {
  return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
}

// `sum` with `value` added where it holds. Of a sum, a blend and a comparison GCC makes two comparisons.
FRCNN_INLINE Vector<float> add_where(Holds<float> holds, const Vector<float>& sum,
                                     const Vector<float>& value) {
  return _mm512_mask_add_ps(sum, holds, sum, value);
}

// `lanes` with all bits set where it holds.
FRCNN_INLINE Vector<int32_t> set_where(Holds<float> holds, const Vector<int32_t>& lanes) {
  return (Vector<int32_t>)_mm512_mask_mov_epi32((__m512i)lanes, holds, _mm512_set1_epi32(-1));
}
#endif

// As bits: lane 0 lowest.
template <typename T>
FRCNN_INLINE unsigned lane_bits(const Holds<T>& holds) {
#if defined(__AVX512F__)
  return holds;
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(reinterpret_cast<__m256>(holds));
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(holds));
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return _mm_movemask_ps(reinterpret_cast<__m128>(holds));
  return _mm_movemask_pd(reinterpret_cast<__m128d>(holds));
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) bits |= (holds[lane] & 1u) << lane;
  return bits;
#endif
}

// Whether any lane is not zero.
template <typename V>
FRCNN_INLINE bool any_lane(const V& v) {
  const V none{};
  return std::memcmp(&v, &none, sizeof(v)) != 0;
}

// ---- conversions ------------------------------------------------------------------------------------
// `Lanes` numbers in memory as the type they are computed in.
template <int Lanes, typename T>
FRCNN_INLINE Vector<semantics::Wide<T>, Lanes> load_wide(const T* from) {
  using W = semantics::Wide<T>;
  if constexpr (std::is_same_v<T, W>) {
    return load_as<Vector<T, Lanes>>(from);
  } else {
#if defined(__F16C__)  // what semantics::widen says, in one instruction
    if constexpr (std::is_same_v<T, float16>) {
#if defined(__AVX512F__)
      if constexpr (Lanes == 16) return _mm512_cvtph_ps(load_as<__m256i>(from));
#endif
      if constexpr (Lanes == 8) return _mm256_cvtph_ps(load_as<__m128i>(from));
      if constexpr (Lanes == 4) return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)from));
    }
#endif
    const auto bits = load_as<Vector<uint16_t, Lanes>>(from);
    return semantics::widen<Vector<float, Lanes>>(
        T{}, __builtin_convertvector(bits, Vector<uint32_t, Lanes>));
  }
}

// How a T is held in a lane of its own size.
template <typename T>
using LaneOf = std::conditional_t<sizeof(T) == 2, uint16_t, T>;

// The other way: values rounded, of integers the low bits.
template <typename T, typename W, int Lanes>
FRCNN_INLINE Vector<LaneOf<T>, Lanes> narrow_lanes(const Vector<W, Lanes>& v) {
  using Narrow [[maybe_unused]] = Vector<uint16_t, Lanes>;
  if constexpr (!std::is_integral_v<T>) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float16> && Lanes == 16)
      return (Narrow)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#endif
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, float16> && Lanes == 8)
      return (Narrow)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#endif
    const auto bits = semantics::narrow<Vector<float, Lanes>, Vector<uint32_t, Lanes>>(T{}, v);
    return narrow_lanes<uint16_t, uint32_t, Lanes>(bits);
  } else {
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 2 && sizeof(W) == 4 && Lanes == 8) {
      const auto low = (__m256i)(v & 0xffff);
      return (Narrow)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    }
#endif
    return __builtin_convertvector(v, Vector<T, Lanes>);
  }
}

// ---- squares: as many vectors as elements fit 16 bytes, transposed within every 16 bytes ------------
template <typename T>
constexpr int kSquare = 16 / sizeof(T);

// Interleaves the elements of two vectors within every 16 bytes: those of their first half (Half = 0) or
// their second.
template <int Half, typename T, int Lanes, int... I>
FRCNN_INLINE Vector<T, Lanes> zip(const Vector<T, Lanes>& a, const Vector<T, Lanes>& b,
                                  std::integer_sequence<int, I...>) {
  constexpr auto source = [](int i) {
    const int in_square = i % kSquare<T>;
    return i - in_square + Half * kSquare<T> / 2 + in_square / 2 + in_square % 2 * Lanes;
  };
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, source(I)...);
#else
  using Index = std::conditional_t<(sizeof(T) > 4), int64_t, IndexOf<T>>;
  return __builtin_shuffle(a, b, Vector<Index, Lanes>{source(I)...});
#endif
}

// Interleaves runs of `Run` elements: a becomes their first half, b their second. A run is moved as one
// element as long as it, which machines have an instruction for.
template <int Run, typename T, int Lanes>
FRCNN_INLINE void interleave(Vector<T, Lanes>& a, Vector<T, Lanes>& b) {
  using Whole = std::conditional_t<
      Run == 1, T, std::conditional_t<Run * sizeof(T) == 4, int32_t, int64_t>>;
  constexpr int wholes = Lanes / Run;
  constexpr auto all = std::make_integer_sequence<int, wholes>();
  const auto x = (Vector<Whole, wholes>)a, y = (Vector<Whole, wholes>)b;
  a = (Vector<T, Lanes>)zip<0, Whole, wholes>(x, y, all);
  b = (Vector<T, Lanes>)zip<1, Whole, wholes>(x, y, all);
}

// By runs of one element, then of two, and so on; that leaves the rows in bit-reversed order.
template <typename T, int Lanes>
FRCNN_INLINE void transpose_squares(Vector<T, Lanes> (&rows)[kSquare<T>]) {
  constexpr int square = kSquare<T>;
  for (int r = 0; r < square; r += 2) interleave<1, T, Lanes>(rows[r], rows[r + 1]);
  if constexpr (square >= 4)
    for (int r = 0; r < square; ++r)
      if (r % 4 < 2) interleave<2, T, Lanes>(rows[r], rows[r + 2]);
  if constexpr (square == 8)
    for (int r = 0; r < 4; ++r) interleave<4, T, Lanes>(rows[r], rows[r + 4]);
  const auto swap = [&](int i, int j) __attribute__((always_inline)) {
    const Vector<T, Lanes> row = rows[i];
    rows[i] = rows[j], rows[j] = row;
  };
  if constexpr (square == 4) swap(1, 2);
  if constexpr (square == 8) swap(1, 4), swap(3, 6);
}

// Both vectors, one after the other, in one twice as wide.
template <typename T, int Lanes>
FRCNN_INLINE Vector<T, 2 * Lanes> join(const Vector<T, Lanes>& a, const Vector<T, Lanes>& b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a) == 32)  // from memory without a shuffle, which compilers do not see
    return (Vector<T, 2 * Lanes>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(a) == 16)
    return (Vector<T, 2 * Lanes>)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)a), (__m128i)b, 1);
#endif
  Vector<T, 2 * Lanes> both;
  std::memcpy(&both, &a, sizeof(a));
  std::memcpy(reinterpret_cast<char*>(&both) + sizeof(a), &b, sizeof(b));
  return both;
}

// `Lanes` numbers as lanes of type L: of the same size the bits as they are, else widened.
template <typename L, int Lanes, typename T>
FRCNN_INLINE Vector<L, Lanes> load_lanes(const T* from) {
  if constexpr (sizeof(T) == sizeof(L))
    return load_as<Vector<L, Lanes>>(from);
  else
    return load_wide<Lanes>(from);
}

// kSquare<L> numbers at each of `Pieces` places, from(first), from(first + kSquare<L>) and so on.
template <typename L, int Pieces, typename From>
FRCNN_INLINE auto load_pieces(From from, int first) {
  constexpr int square = kSquare<L>, lanes = Pieces * square;
  if constexpr (Pieces > 1) {
    return join<L, lanes / 2>(load_pieces<L, Pieces / 2>(from, first),
                              load_pieces<L, Pieces / 2>(from, first + lanes / 2));
  } else {
    return load_lanes<L, square>(from(first));
  }
}

// kSquare<L> numbers from each of `Lanes` places, so that rows[r] holds the r-th of each.
template <typename L, int Lanes, typename From>
FRCNN_INLINE void load_transposed(From from, Vector<L, Lanes> (&rows)[kSquare<L>]) {
#pragma GCC unroll 8
  for (int r = 0; r < kSquare<L>; ++r) rows[r] = load_pieces<L, Lanes / kSquare<L>>(from, r);
  transpose_squares<L, Lanes>(rows);
}

// ---- memory -------------------------------------------------------------------------------------------
constexpr int64_t kLine = 64;  // bytes that memory moves together

// Asks for lines that will soon be read, where the hardware prefetcher does not see which.
FRCNN_INLINE void prefetch(const void* first, int64_t bytes) {
  const char* at = static_cast<const char*>(first);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i);
}

// Asks for lines that will soon be written, so that the stores do not wait for them.
FRCNN_INLINE void prefetch_to_write(const void* first, int64_t bytes) {
  const char* at = static_cast<const char*>(first);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 1, 2);
}

// Writes one vector past the caches where the machine can. `to` is aligned to the vector.
template <typename V>
FRCNN_INLINE void stream(void* to, const V& v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#else
  std::memcpy(to, &v, kVectorBytes);
#endif
}

// Until this, streamed vectors may reach memory after whatever the program writes next.
FRCNN_INLINE void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- results ------------------------------------------------------------------------------------------
// `Lanes` numbers as the result has them: values, the bits of values, or the numbers of cells.
template <typename T, int Lanes, typename L>
FRCNN_INLINE Vector<LaneOf<T>, Lanes> load_result(const L* from) {
  if constexpr (Lanes > kLanes<L>) {
    return join<LaneOf<T>, Lanes / 2>(load_result<T, Lanes / 2>(from),
                                      load_result<T, Lanes / 2>(from + Lanes / 2));
  } else {
    const auto v = load_as<Vector<L, Lanes>>(from);
    if constexpr (sizeof(T) == sizeof(L)) {
      return (Vector<LaneOf<T>, Lanes>)v;
    } else if constexpr (sizeof(T) < sizeof(L)) {
      return narrow_lanes<T, L, Lanes>(v);
    } else {  // 16 bits count without a sign, and all of them set stand for -1
      const auto number = __builtin_convertvector(v, Vector<T, Lanes>) & 0xffff;
      return number | (number == 0xffff);
    }
  }
}

// The most numbers beyond the end of a run that put_run reads.
template <typename L>
constexpr int64_t kRunSpare = 4 * kLanes<L>;

// Copies a run of numbers to the result.
template <typename T, typename L>
FRCNN_INLINE void put_run(T* to, const L* from, int64_t size, bool past_caches) {
  constexpr int64_t step = kVectorBytes / sizeof(T);
  static_assert(step <= kRunSpare<L>);
  const bool streamed = past_caches && reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
  int64_t i = 0;
  if (streamed)
    for (; i + step <= size; i += step) stream(to + i, load_result<T, step>(from + i));
  if constexpr (sizeof(T) == sizeof(L)) {
    std::memcpy(to + i, from + i, (size - i) * sizeof(T));
  } else {
    for (; i < size; i += step) {
      const auto part = load_result<T, step>(from + i);
      if (i + step <= size)
        std::memcpy(to + i, &part, sizeof(part));
      else
        std::memcpy(to + i, &part, (size - i) * sizeof(T));
    }
  }
}

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
