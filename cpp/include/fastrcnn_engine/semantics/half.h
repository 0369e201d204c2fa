// The 16-bit floating types that features may be stored in, and their conversions: exact to float32,
// rounded to the nearest (ties to even) back. Nothing is computed in them.
//
// The conversions are written on bit patterns, for one number (F = float, U = uint32_t) and, lane by
// lane, for vectors of as many.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastrcnn_engine/host_device.h"

namespace fastrcnn_engine {

struct float16 {  // IEEE binary16
  uint16_t bits;
};

struct bfloat16 {  // the upper half of a float32
  uint16_t bits;
};

namespace semantics {

template <typename To, typename From>
FRCNN_HD To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// `bits` holds 16 bits in each 32.
template <typename F, typename U>
FRCNN_HD F widen(bfloat16, const U& bits) {
  return same_bits<F>(bits << 16);
}

template <typename F, typename U>
FRCNN_HD F widen(float16, const U& bits) {
  const U magnitude = bits & 0x7fffu;
  const U rebased = (magnitude << 13) + (112u << 23);  // the exponent counts from 127 instead of 15
  // Denormals: 2^-14 (1 + m) - 2^-14 is exact, and no denormal float32 on the way.
  const U denormal = same_bits<U>(same_bits<F>(rebased + (1u << 23)) - 0x1p-14f);
  const U finite = magnitude < 0x400u ? denormal : rebased;
  const U whole = magnitude >= 0x7c00u ? rebased + (112u << 23) : finite;  // infinity, NaN
  return same_bits<F>(whole | (bits & 0x8000u) << 16);
}

template <typename F, typename U>
FRCNN_HD U narrow(bfloat16, const F& value) {
  const U bits = same_bits<U>(value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;  // a NaN stays one
}

template <typename F, typename U>
FRCNN_HD U narrow(float16, const F& value) {
  const U bits = same_bits<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  const U special = magnitude > 0x7f800000u ? magnitude * 0u + 0x7e00u : magnitude * 0u + 0x7c00u;
  // Adding 0.5 leaves a denormal's bits, rounded, at the end of the fraction.
  const U denormal = same_bits<U>(same_bits<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U finite = magnitude < (113u << 23) ? denormal : normal;
  const U whole = magnitude >= (143u << 23) ? special : finite;
  return whole | ((bits >> 16) & 0x8000u);
}

// The bits of a 16-bit number as an integer that is greater where the number is: its key. Its own inverse.
// For one int16_t, and for vectors of them.
template <typename S>
FRCNN_HD S order_key(const S& bits) {
  return bits ^ ((bits >> 15) & 0x7fff);
}

// What keys cannot say: a NaN is not less than any number, and -0 not less than 0.
template <typename S>
FRCNN_HD auto lacks_key(float16, const S& bits) {
  return ((bits & 0x7fff) > 0x7c00) | (bits == -0x8000);
}
template <typename S>
FRCNN_HD auto lacks_key(bfloat16, const S& bits) {
  return ((bits & 0x7fff) > 0x7f80) | (bits == -0x8000);
}

// ---- one number; float and double are themselves ------------------------------------------------------
FRCNN_HD float widen(float value) { return value; }
FRCNN_HD double widen(double value) { return value; }
template <typename T>
FRCNN_HD float widen(T value) {
  return widen<float>(T{}, static_cast<uint32_t>(value.bits));
}

template <typename T>
FRCNN_HD T narrow(float value) {
  return {static_cast<uint16_t>(narrow<float, uint32_t>(T{}, value))};
}

// What values of type T are computed in.
template <typename T>
using Wide = decltype(widen(T{}));

}  // namespace semantics
}  // namespace fastrcnn_engine
