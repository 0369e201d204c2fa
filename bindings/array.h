// Any array a caller hands over, as a view: NumPy through the buffer protocol, everything else through
// DLPack. Nothing is copied; what does not fit is refused by name.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "dlpack.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine::bindings {

namespace py = pybind11;

enum class Access { read, write };

template <typename T>
constexpr DLDataType dtype_of() {
  if constexpr (std::is_same_v<T, float16>) return {dlpack::kFloat, 16, 1};
  if constexpr (std::is_same_v<T, bfloat16>) return {dlpack::kBfloat, 16, 1};
  if constexpr (std::is_unsigned_v<T>) return {dlpack::kUInt, 8 * sizeof(T), 1};
  if constexpr (std::is_floating_point_v<T>) return {dlpack::kFloat, 8 * sizeof(T), 1};
  return {dlpack::kInt, 8 * sizeof(T), 1};
}

std::string dtype_name(DLDataType dtype);

// An array borrowed for one call. `stream` is the CUDA stream the work will be queued on, in DLPack's
// numbering; producers of capsules make their pending writes visible to it. Torch's tensors come by a table of
// functions that does not, as their work is queued on `stream` already, and that knows no read-only arrays.
class Array {
 public:
  Array(py::handle object, const char* name, Access access, uintptr_t stream);

  const char* name() const { return name_; }
  DLDevice device() const { return device_; }
  DLDataType dtype() const { return dtype_; }
  std::span<const int64_t> shape() const { return {shape_, static_cast<size_t>(rank_)}; }
  std::string shape_text() const;
  bool is_dense(Layout layout) const;  // rank 4 only
  bool overlaps(const Array& other) const;  // both dense

  // Row-major view; InvalidArgument when dtype, rank or memory order differ.
  template <typename T, int Rank>
  View<T, Rank> view() const {
    require_dtype<T>();
    require_rank(Rank);
    require_row_major();
    View<T, Rank> view;
    view.data = static_cast<T*>(data_);
    for (int d = 0; d < Rank; ++d) view.shape[d] = shape_[d];
    return view;
  }

  // A vector of exactly `rows` numbers.
  template <typename T>
  T* vector(int64_t rows) const {
    const View<T, 1> v = view<T, 1>();
    require(v.shape[0] == rows, name_, " must have ", rows, " elements, got ", v.shape[0]);
    return v.data;
  }

  // One number, whatever the number of dimensions.
  template <typename T>
  T* scalar() const {
    require_dtype<T>();
    for (const int64_t extent : shape())
      if (extent != 1) fail(name_, " must be one number, got shape ", shape_text());
    return static_cast<T*>(data_);
  }

  template <typename T>
  MapView<T> map(Layout layout) const {
    require_dtype<T>();
    require_rank(4);
    return {static_cast<T*>(data_), shape_[0], shape_[1], shape_[2], shape_[3], layout};
  }

 private:
  template <typename T>
  void require_dtype() const {
    constexpr DLDataType wanted = dtype_of<std::remove_const_t<T>>();
    if (dtype_.code == wanted.code && dtype_.bits == wanted.bits && dtype_.lanes == 1) return;
    fail(name_, " must be ", dtype_name(wanted), ", got ", dtype_name(dtype_));
  }
  void require_rank(int rank) const;
  uintptr_t begin() const { return reinterpret_cast<uintptr_t>(data_); }
  uintptr_t end() const;
  void require_row_major() const;
  void set_rank(int rank);
  void adopt(const DLTensor& tensor);
  void adopt_exchange(py::handle object, const DLPackExchangeAPI& api);
  void adopt_buffer(py::handle object, Access access);
  void adopt_capsule(py::handle object, Access access, uintptr_t stream);

  const char* name_;
  void* data_ = nullptr;
  DLDevice device_{dlpack::kCPU, 0};
  DLDataType dtype_{};
  static constexpr int kMaxRank = 64;  // NumPy's; without heap memory a view costs next to nothing
  int rank_ = 0;
  int64_t shape_[kMaxRank], strides_[kMaxRank];  // in elements; the first rank_ count

  // What the array came as, held for the call.
  struct Buffer : Py_buffer {
    Buffer() { obj = nullptr; }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { PyBuffer_Release(this); }  // does nothing where obj is null
  };
  Buffer buffer_;
  py::object capsule_;
};

// The one layout in which every array is dense (each may be dense in both). The message is about the first
// that does not fit those before it.
Layout common_layout(std::initializer_list<const Array*> maps);

}  // namespace fastrcnn_engine::bindings
