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
using IndexOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

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

// The lanes in which a comparison of vectors of T holds, as bits: lane 0 lowest.
template <typename T>
FRCNN_INLINE unsigned lane_bits(const Vector<IndexOf<T>>& holds) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(holds));
  return _mm512_movepi64_mask(reinterpret_cast<__m512i>(holds)) & 0xFF;
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(reinterpret_cast<__m256>(holds));
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(holds)) & 0xF;
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return _mm_movemask_ps(reinterpret_cast<__m128>(holds));
  return _mm_movemask_pd(reinterpret_cast<__m128d>(holds)) & 0x3;
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) bits |= (holds[lane] & 1u) << lane;
  return bits;
#endif
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

// The other way; integers keep their low bits.
template <typename W, int Lanes, typename T>
FRCNN_INLINE void store_narrow(T* to, const Vector<W, Lanes>& v) {
  const auto put = [to](const auto& narrow) { std::memcpy(to, &narrow, sizeof(narrow)); };
  if constexpr (std::is_same_v<T, W>) {
    put(v);
  } else if constexpr (std::is_integral_v<T>) {
    put(__builtin_convertvector(v, Vector<T, Lanes>));
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float16> && Lanes == 16)
      return put(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, float16> && Lanes == 8)
      return put(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#endif
    const auto bits = semantics::narrow<Vector<float, Lanes>, Vector<uint32_t, Lanes>>(T{}, v);
    put(__builtin_convertvector(bits, Vector<uint16_t, Lanes>));
  }
}

// ---- squares: as many vectors as elements fit 16 bytes, transposed within every 16 bytes ------------
template <typename T>
constexpr int kSquare = 16 / sizeof(T);

// Interleaves runs of `Run` elements of two vectors, within every 16 bytes: of their first half
// (Half = 0) or their second.
template <int Run, int Half, typename T, int... I>
FRCNN_INLINE Vector<T> zip(const Vector<T>& a, const Vector<T>& b,
                           std::integer_sequence<int, I...>) {
  constexpr auto source = [](int i) {
    const int in_square = i % kSquare<T>, run = in_square / Run;
    const int from = i - in_square + Half * kSquare<T> / 2 + run / 2 * Run + in_square % Run;
    return from + run % 2 * kLanes<T>;
  };
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, source(I)...);
#else
  return __builtin_shuffle(a, b, Vector<IndexOf<T>>{source(I)...});
#endif
}

template <int Run, int Half, typename T>
FRCNN_INLINE Vector<T> zip(const Vector<T>& a, const Vector<T>& b) {
  return zip<Run, Half, T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}

template <typename T>
FRCNN_INLINE void transpose_squares(Vector<T> (&rows)[kSquare<T>]) {
  if constexpr (kSquare<T> == 4) {
    const Vector<T> a = zip<1, 0, T>(rows[0], rows[1]), b = zip<1, 1, T>(rows[0], rows[1]);
    const Vector<T> c = zip<1, 0, T>(rows[2], rows[3]), d = zip<1, 1, T>(rows[2], rows[3]);
    rows[0] = zip<2, 0, T>(a, c), rows[1] = zip<2, 1, T>(a, c);
    rows[2] = zip<2, 0, T>(b, d), rows[3] = zip<2, 1, T>(b, d);
  } else {
    const Vector<T> a = zip<1, 0, T>(rows[0], rows[1]);
    rows[1] = zip<1, 1, T>(rows[0], rows[1]), rows[0] = a;
  }
}

// ---- memory -------------------------------------------------------------------------------------------
constexpr int64_t kLine = 64;  // bytes that memory moves together

// Asks for lines that will soon be written, so that the stores do not wait for them.
FRCNN_INLINE void prefetch_to_write(const void* first, int64_t bytes) {
  const char* at = static_cast<const char*>(first);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 1, 2);
}

// Writes one vector past the caches where the machine can. `to` is aligned to the vector.
FRCNN_INLINE void stream(void* to, const void* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), load_as<__m512i>(from));
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), load_as<__m256i>(from));
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(to), load_as<__m128i>(from));
#else
  std::memcpy(to, from, kVectorBytes);
#endif
}

// Until this, streamed vectors may reach memory after whatever the program writes next.
FRCNN_INLINE void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
