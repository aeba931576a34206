// The kernels as MindSpore operators. Only this file includes MindSpore's header, which takes most of a build's time,
// so it knows of the kernels no more than kernels.h says; the library that holds them is loaded at run time.
#include <dlfcn.h>

#include <stdexcept>

#include "kernels.h"
#include "ms_extension/api.h"

namespace {

using ms::Tensor;
using Tensors = std::vector<Tensor>;
using Ins = const Tensors &;
using Out = const Tensor &;

void check(bool sound, const char *what) {
  if (!sound) throw std::invalid_argument(what);
}

// MindSpore checks neither dtype nor layout of what reaches a custom operator.
const float *floats(const Tensor &x, size_t size) {
  check(x.data_type() == ms::TypeId::kNumberTypeFloat32, "expected float32");
  check(x.is_contiguous() && x.numel() == size, "expected a contiguous tensor of another size");
  return static_cast<const float *>(x.GetDataPtr());
}

float *result(const Tensor &y) { return static_cast<float *>(y.GetDataPtr()); }

Matrix matrix(const Tensor &w) {
  const auto type = w.data_type();
  check(w.is_contiguous(), "a weight that is not contiguous");
  const bool narrow = type == ms::TypeId::kNumberTypeBFloat16, half = type == ms::TypeId::kNumberTypeFloat16;
  check(narrow || half || type == ms::TypeId::kNumberTypeFloat32, "a weight of an unknown dtype");
  const auto &shape = w.shape();
  check(shape.size() == 1 || shape.size() == 2, "a weight that is no matrix or vector");
  return {w.GetDataPtr(), narrow ? BFLOAT16 : half ? FLOAT16 : FLOAT32, shape.size() == 2 ? shape[0] : 1, shape.back()};
}

uint16_t *slots(const Tensor &x, size_t size) {
  check(x.data_type() == ms::TypeId::kNumberTypeUInt16 && x.is_contiguous() && x.numel() == size, "unsound slots");
  return static_cast<uint16_t *>(x.GetDataPtr());
}

template <class Launch>
class Runner : public ms::pynative::PyboostRunner {
 public:
  Runner(const char *name, Launch launch) : PyboostRunner(name), launch_(launch) {}
  void LaunchKernel() override { launch_(inputs(), outputs()[0]); }

 private:
  Launch launch_;
};

// A float32 tensor of shape(inputs), filled by launch(inputs, output). MindSpore may do so later: all is held by value.
template <class Shape, class Launch>
py::object run(const char *name, const Tensors &inputs, Shape shape, Launch launch) {
  const auto call = [name, shape, launch](Ins in) {
    Tensor y(ms::TypeId::kNumberTypeFloat32, shape(in));
    std::make_shared<Runner<Launch>>(name, launch)->Run(in, {y});
    return y;
  };
  return ms::pynative::PyboostRunner::Call<1>(std::string(name), call, inputs);
}

ShapeVector like_first(Ins in) { return in[0].shape(); }

// A library of kernels
struct Library {
  const Kernels *kernels;

  explicit Library(const std::string &path) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    auto entry = library ? reinterpret_cast<decltype(&mistral_kernels)>(dlsym(library, "mistral_kernels")) : nullptr;
    if (!entry) throw std::runtime_error(dlerror());
    kernels = entry();
  }

  py::object embed(const Tensor &table, const Tensor &ids) {
    const auto shape = [](Ins in) { return ShapeVector{int64_t(in[1].numel()), in[0].shape()[1]}; };
    return run("MistralEmbed", {table, ids}, shape, [kernels = kernels](Ins in, Out y) {
      check(in[1].data_type() == ms::TypeId::kNumberTypeInt64 && in[1].is_contiguous(), "ids must be int64");
      kernels->embed(matrix(in[0]), static_cast<const int64_t *>(in[1].GetDataPtr()), result(y), in[1].numel());
    });
  }

  py::object rms_norm(const Tensor &x, const Tensor &weight, float eps) {
    return run("MistralRmsNorm", {x, weight}, like_first, [kernels = kernels, eps](Ins in, Out y) {
      const int64_t tokens = in[0].shape()[0];
      const Matrix w = matrix(in[1]);
      kernels->rms_norm(floats(in[0], tokens * w.in), w, eps, result(y), tokens);
    });
  }

  py::object add(const Tensor &a, const Tensor &b) {
    return run("MistralAdd", {a, b}, like_first, [kernels = kernels](Ins in, Out y) {
      const size_t size = in[0].numel();
      kernels->add(floats(in[0], size), floats(in[1], size), result(y), size);
    });
  }

  py::object linear(const Tensor &x, const Tensor &weight, bool exact) {
    const auto shape = [](Ins in) { return ShapeVector{in[0].shape()[0], in[1].shape()[0]}; };
    return run("MistralLinear", {x, weight}, shape, [kernels = kernels, exact](Ins in, Out y) {
      const int64_t tokens = in[0].shape()[0];
      const Matrix w = matrix(in[1]);
      kernels->linear(floats(in[0], tokens * w.in), w, result(y), tokens, exact);
    });
  }

  py::object feed_forward(const Tensor &x, const Tensor &w1, const Tensor &w2, const Tensor &w3) {
    return run("MistralFeedForward", {x, w1, w2, w3}, like_first, [kernels = kernels](Ins in, Out y) {
      const int64_t tokens = in[0].shape()[0];
      const Matrix w1 = matrix(in[1]), w2 = matrix(in[2]), w3 = matrix(in[3]);
      check(w1.out == w2.in && w3.out == w2.in && w1.in == w3.in && w2.out == w1.in, "weights that do not fit");
      kernels->feed_forward(floats(in[0], tokens * w1.in), w1, w2, w3, result(y), tokens);
    });
  }

  // caches: keys and values of each row, or nothing at all; sizes: tokens, those before and slots of each row
  py::object attention(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &cos, const Tensor &sin,
                       const Tensors &caches, const std::vector<int64_t> &sizes, int64_t window) {
    Tensors inputs = {q, k, v, cos, sin};
    inputs.insert(inputs.end(), caches.begin(), caches.end());
    return run("MistralAttention", inputs, like_first, [kernels = kernels, sizes, window](Ins in, Out y) {
      const int64_t tokens = in[3].shape()[0], dim = in[3].shape()[1];
      const Heads heads = {int64_t(in[0].shape()[1]) / dim, int64_t(in[1].shape()[1]) / dim, dim, window};
      std::vector<Row> rows;
      int64_t total = 0;
      for (size_t r = 0; 3 * r < sizes.size(); r++) {
        Row row = {sizes[3 * r], sizes[3 * r + 1], sizes[3 * r + 2], nullptr, nullptr};
        if (row.slots) {
          const size_t size = heads.kv_heads * row.slots * dim;
          row.keys = slots(in.at(5 + 2 * r), size);
          row.values = slots(in.at(6 + 2 * r), size);
        }
        total += row.tokens;
        rows.push_back(row);
      }
      check(total == tokens && dim % 2 == 0 && heads.heads % heads.kv_heads == 0, "rows that do not fit the tokens");
      const size_t size = tokens * dim;
      kernels->attention(floats(in[0], size * heads.heads), floats(in[1], size * heads.kv_heads),
                         floats(in[2], size * heads.kv_heads), floats(in[3], size), floats(in[4], size), result(y),
                         heads, rows.data(), rows.size());
    });
  }
};

}  // namespace

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
  py::class_<Library>(m, "Library")
      .def(py::init<const std::string &>())
      .def_property_readonly("instructions", [](const Library &library) { return library.kernels->instructions; })
      .def("embed", &Library::embed)
      .def("rms_norm", &Library::rms_norm)
      .def("add", &Library::add)
      .def("linear", &Library::linear)
      .def("feed_forward", &Library::feed_forward)
      .def("attention", &Library::attention);
}
