// Makes an Array of a Python object, by its buffer, a DLPack capsule or torch's table of functions. Knows no
// operator, and imports neither torch nor NumPy: tensors are there after their torch.
#include "array.h"

#include <algorithm>
#include <bit>
#include <sstream>
#include <unordered_map>

namespace fastrcnn_engine::bindings {

namespace {

// No DLPack codes: they match no type, and are named in the message.
constexpr uint8_t kSwapped = 255, kCompound = 254;

constexpr const char* kCapsule = "dltensor";
constexpr const char* kVersionedCapsule = "dltensor_versioned";

// Whether the strides are those of a dense array, the last dimension varying fastest. Strides of dimensions
// with one element, and of empty arrays, mean nothing.
bool is_row_major(std::span<const int64_t> shape, const int64_t* strides) {
  if (std::ranges::count(shape, 0) > 0) return true;
  int64_t expected = 1;
  for (size_t d = shape.size(); d-- > 0; expected *= shape[d])
    if (shape[d] != 1 && strides[d] != expected) return false;
  return true;
}

// A buffer format is one letter, after an optional sign of the byte order; anything longer (complex
// numbers, records) is no type of ours.
DLDataType dtype_of_format(const std::string& format, int64_t itemsize) {
  const bool marked = !format.empty() && std::string("@=<>!").find(format[0]) != std::string::npos;
  if (format.size() != (marked ? 2u : 1u)) return {kCompound, 0, 1};  // its bits need not fit
  const auto bits = static_cast<uint8_t>(8 * itemsize);
  const char kind = format.back();
  const bool swapped = std::endian::native == std::endian::little
                           ? format.starts_with('>') || format.starts_with('!')
                           : format.starts_with('<');
  if (swapped) return {kSwapped, bits, 1};
  if (std::string("efdg").find(kind) != std::string::npos) return {dlpack::kFloat, bits, 1};
  if (kind == '?') return {dlpack::kBool, bits, 1};
  if (std::string("bhilqn").find(kind) != std::string::npos) return {dlpack::kInt, bits, 1};
  return {dlpack::kUInt, bits, 1};
}

// An attribute of arrays on a GPU; of a type that has such arrays, too.
constexpr const char* kOnGpu = "__cuda_array_interface__";

// How arrays of a type are read, found out once in a thread.
struct ArrayType {
  bool has_buffer, may_be_on_gpu;
  const DLPackExchangeAPI* exchange;  // null where it has none
};

const ArrayType& array_type(PyTypeObject* type) {
  // Each thread's own: a lock would be asked for in every call, and there may be no GIL.
  thread_local std::unordered_map<PyTypeObject*, ArrayType> known;
  const auto found = known.find(type);
  if (found != known.end()) return found->second;
  const py::handle attributes(reinterpret_cast<PyObject*>(type));
  const PyBufferProcs* const buffer = type->tp_as_buffer;
  const DLPackExchangeAPI* api = nullptr;
  const py::object capsule = py::getattr(attributes, "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    const auto* table = static_cast<const DLPackExchangeAPI*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table->header.version.major == 1 && table->dltensor_from_py_object_no_sync != nullptr)
      api = table;
  }
  Py_INCREF(type);  // the address must stay this type's
  const ArrayType result{buffer != nullptr && buffer->bf_getbuffer != nullptr,
                         py::hasattr(attributes, kOnGpu), api};
  return known.emplace(type, result).first->second;
}

// A capsule of a torch tensor on a GPU, of a torch that has no table (before 2.10). Its `__dlpack__` means a
// stream of the current GPU, and in 2.9 refuses a tensor on another; this function of torch's asks for neither,
// as the work is queued on the tensor's own stream anyway. Null if the object is none of torch's.
py::object capsule_of_tensor(py::handle object) {
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (!modules.contains("torch")) return {};
  const py::object torch = modules["torch"];
  if (!py::isinstance(object, torch.attr("Tensor"))) return {};
  return torch.attr("utils").attr("dlpack").attr("to_dlpack")(object);
}

}  // namespace

std::string dtype_name(DLDataType dtype) {
  if (dtype.code == dlpack::kBool) return "bool";
  if (dtype.code == kCompound) return "complex or compound numbers";
  const char* kind = "dtype ";
  if (dtype.code == kSwapped) kind = "byte-swapped ";
  const bool narrow = dtype.code >= dlpack::kFirstFloat8 && dtype.code <= dlpack::kLastFloat4;
  if (dtype.code == dlpack::kFloat || narrow) kind = "float";
  if (dtype.code == dlpack::kInt) kind = "int";
  if (dtype.code == dlpack::kUInt) kind = "uint";
  if (dtype.code == dlpack::kBfloat) kind = "bfloat";
  if (dtype.code == dlpack::kComplex) kind = "complex";
  return kind + std::to_string(dtype.bits);
}

Array::Array(py::handle object, const char* name, Access access, uintptr_t stream) : name_(name) {
  const ArrayType& type = array_type(Py_TYPE(object.ptr()));
  // CuPy's arrays on a GPU have a buffer; asked for, it is refused or, of managed memory, in the GPU's hands.
  if (type.has_buffer && !(type.may_be_on_gpu && py::hasattr(object, kOnGpu))) {
    adopt_buffer(object, access);
  } else {
    try {
      if (type.exchange != nullptr)
        adopt_exchange(object, *type.exchange);
      else
        adopt_capsule(object, access, stream);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;
      const std::string text = py::str(error.value());  // torch's goes on with a backtrace
      fail(name_, " cannot be read by DLPack: ", text.substr(0, text.find('\n')));
    }
  }
  require(device_.device_type == dlpack::kCPU || device_.device_type == dlpack::kCUDA ||
              device_.device_type == dlpack::kCUDAHost,
          name_, " must be in CPU or CUDA memory, got DLPack device type ", device_.device_type);
  // torch has zeros without memory.
  require(data_ != nullptr || std::ranges::count(shape(), 0) > 0, name_,
          " has no memory; make a copy first");
  const auto item = static_cast<uintptr_t>(dtype_.bits / 8);
  require(item == 0 || reinterpret_cast<uintptr_t>(data_) % item == 0, name_,
          " must be aligned to its elements; make a copy first");
}

void Array::set_rank(int rank) {
  require(rank <= kMaxRank, name_, " must have at most ", kMaxRank, " dimensions, got ", rank);
  rank_ = rank;
}

void Array::adopt(const DLTensor& tensor) {
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  device_ = tensor.device;
  dtype_ = tensor.dtype;
  set_rank(tensor.ndim);
  std::copy_n(tensor.shape, rank_, shape_);
  if (tensor.strides != nullptr) {
    std::copy_n(tensor.strides, rank_, strides_);
    return;
  }
  int64_t stride = 1;
  for (int d = rank_ - 1; d >= 0; stride *= shape_[d--]) strides_[d] = stride;
}

void Array::adopt_exchange(py::handle object, const DLPackExchangeAPI& api) {
  DLTensor tensor;
  if (api.dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0) throw py::error_already_set();
  adopt(tensor);
}

void Array::adopt_buffer(py::handle object, Access access) {
  const int flags = access == Access::write ? PyBUF_RECORDS : PyBUF_RECORDS_RO;
  if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) {
    PyErr_Clear();
    fail(name_, " must be a", access == Access::write ? " writable" : "n", " array");
  }
  data_ = buffer_.buf;
  dtype_ = dtype_of_format(buffer_.format == nullptr ? "B" : buffer_.format, buffer_.itemsize);
  set_rank(buffer_.ndim);
  const auto item = std::max<int64_t>(buffer_.itemsize, 1);  // NumPy has elements of no bytes
  for (int d = 0; d < rank_; ++d) {
    shape_[d] = buffer_.shape[d];
    // A stride that is no whole number of elements cannot be dense; 0 says so without a special case.
    const int64_t stride = buffer_.strides[d];
    strides_[d] = stride % item == 0 ? stride / item : 0;
  }
}

void Array::adopt_capsule(py::handle object, Access access, uintptr_t stream) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__"))
    throw py::type_error(std::string(name_) + " must be an array (NumPy, torch or any other with DLPack), got " +
                         std::string(py::str(py::type::of(object).attr("__name__"))));
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
  py::dict arguments;
  py::object capsule;
  if (device.first == dlpack::kCUDA) {
    arguments["stream"] = stream == 0 ? 1 : stream;
    capsule = capsule_of_tensor(object);
  }
  if (!capsule) {
    try {  // version 1 tells read-only arrays apart; older producers do not know the argument
      capsule = object.attr("__dlpack__")(**arguments, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = object.attr("__dlpack__")(**arguments);
    }
  }
  if (PyCapsule_IsValid(capsule.ptr(), kVersionedCapsule)) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), kVersionedCapsule));
    require(managed->version.major == 1, name_, ": DLPack version ", managed->version.major,
            " is not known here");
    require(access == Access::read || (managed->flags & dlpack::kReadOnly) == 0, name_,
            " must be a writable array");
    adopt(managed->dl_tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), kCapsule)) {
    adopt(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule))->dl_tensor);
  } else {
    throw py::type_error(std::string(name_) + ": __dlpack__ did not give a DLPack capsule");
  }
  capsule_ = std::move(capsule);  // not consumed: dropped after the call, it frees itself
}

std::string Array::shape_text() const {
  std::ostringstream text;
  text << '(';
  for (int d = 0; d < rank_; ++d) text << (d > 0 ? ", " : "") << shape_[d];
  text << (rank_ == 1 ? ",)" : ")");
  return text.str();
}

bool Array::is_dense(Layout layout) const {
  require_rank(4);
  if (layout == Layout::nchw) return is_row_major(shape(), strides_);
  const int64_t shape[] = {shape_[0], shape_[2], shape_[3], shape_[1]};
  const int64_t strides[] = {strides_[0], strides_[2], strides_[3], strides_[1]};
  return is_row_major(shape, strides);
}

uintptr_t Array::end() const {
  int64_t bytes = dtype_.bits / 8;
  for (const int64_t extent : shape()) bytes *= extent;
  return begin() + static_cast<uintptr_t>(bytes);
}

bool Array::overlaps(const Array& other) const {
  return std::max(begin(), other.begin()) < std::min(end(), other.end());
}

void Array::require_rank(int rank) const {
  if (rank_ != rank) fail(name_, " must have ", rank, " dimensions, got shape ", shape_text());
}

void Array::require_row_major() const {
  require(is_row_major(shape(), strides_), name_,
          " must be contiguous (row-major); make a contiguous copy first");
}

Layout common_layout(std::initializer_list<const Array*> maps) {
  const Array *planes = nullptr, *cells = nullptr;  // dense in one layout only
  for (const Array* map : maps) {
    const bool nchw = map->is_dense(Layout::nchw), nhwc = map->is_dense(Layout::nhwc);
    require(nchw || nhwc, map->name(),
            " must be dense in memory, NCHW or channels-last; make a contiguous copy first");
    if (nchw == nhwc) continue;
    (nchw ? planes : cells) = map;
    if (planes != nullptr && cells != nullptr)
      fail(map->name(), " must have the memory layout of ", (nchw ? cells : planes)->name(),
           " (both NCHW or both channels-last)");
  }
  return cells != nullptr ? Layout::nhwc : Layout::nchw;
}

}  // namespace fastrcnn_engine::bindings
