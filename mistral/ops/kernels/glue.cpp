// The kernels as MindSpore operators: a Python module with classes Weight, Block and Library, whose methods take and
// return float32 tensors on the CPU (shapes: kernels.h). Only this file includes MindSpore's header, which takes 20 to 30
// seconds to compile. So it knows of the kernels only what kernels.h says, is built apart from them, and loads their
// library when a Library is made.
#include <dlfcn.h>

#include <functional>
#include <optional>
#include <stdexcept>

#include "kernels.h"
#include "ms_extension/api.h"

namespace {

using ms::Tensor;
using Tensors = std::vector<Tensor>;
using Sizes = std::vector<int64_t>;
using Launch = std::function<void(const Tensors &, float *)>;

void check(bool sound, const char *what) {
  if (!sound) throw std::invalid_argument(what);
}

// The data of a float32 tensor of this many elements. MindSpore checks neither the dtype nor the layout of a custom
// operator's inputs.
const float *floats(const Tensor &x, size_t size) {
  check(x.data_type() == ms::TypeId::kNumberTypeFloat32, "expected float32");
  check(x.is_contiguous() && x.numel() == size, "expected a contiguous tensor of another size");
  return static_cast<const float *>(x.GetDataPtr());
}

// The data of a cache: bfloat16 as the bits of uint16, or float32
void *slots(const Tensor &x, size_t size, bool precise) {
  const auto type = precise ? ms::TypeId::kNumberTypeFloat32 : ms::TypeId::kNumberTypeUInt16;
  check(x.data_type() == type && x.is_contiguous() && x.numel() == size, "unsound slots");
  return x.GetDataPtr();
}

// A weight in memory that the caller keeps alive. It is no tensor, so that the cost of calling an operator does not
// grow with its number of weights.
struct Weight : Matrix {
  Weight(uintptr_t values, uintptr_t scale, int32_t type, int64_t out, int64_t in)
      : Matrix{reinterpret_cast<const void *>(values), reinterpret_cast<const float *>(scale), Type(type), out, in} {
    check(values && out > 0 && in > 0 && type >= FLOAT32 && type <= BLOCKS_IQ4_XS, "an unsound weight");
    check(scale || type != FLOAT8, "a weight of 8-bit floats without its scale");
    check(type < BLOCKS_Q8_0 || in % (type < BLOCKS_Q4_K ? 32 : 256) == 0, "rows that are no whole blocks");
  }
};

// An operator of one output, which `launch` fills
class Runner : public ms::pynative::PyboostRunner {
 public:
  Runner(const char *name, const Launch &launch) : PyboostRunner(name), launch_(launch) {}
  void LaunchKernel() override { launch_(inputs(), static_cast<float *>(outputs()[0].GetDataPtr())); }

 private:
  const Launch launch_;
};

// Runs an operator -> float32 tensor (T, width), with T of the first input. MindSpore may call `launch` after this has
// returned, so it holds all it needs by value.
py::object run(const char *name, const Tensors &inputs, size_t width, const Launch &launch) {
  const auto call = [name, width, &launch](const Tensors &in) {
    Tensor y(ms::TypeId::kNumberTypeFloat32, ShapeVector{in[0].shape()[0], int64_t(width)});
    std::make_shared<Runner>(name, launch)->Run(in, {y});
    return y;
  };
  return ms::pynative::PyboostRunner::Call<1>(std::string(name), call, inputs);
}

// The rotation in cosines and sines (T, d) and, where there are any, factors of queries (T,), from `first` on
Rotation rotation_of(const Tensors &in, size_t first, size_t count, size_t tokens, size_t dim) {
  const float *factors = count > 2 ? floats(in[first + 2], tokens) : nullptr;
  return {floats(in[first], tokens * dim), floats(in[first + 1], tokens * dim), factors};
}

// w1, w2, w3, with shapes that fit
FeedForwardWeights feed_forward_weights(const std::vector<Weight> &w) {
  check(w.size() == 3 && w[0].out == w[1].in && w[2].out == w[1].in && w[0].in == w[2].in && w[1].out == w[0].in,
        "weights that do not fit");
  return {w[0], w[1], w[2]};
}

// A block, which the caller keeps alive with its weights. gate: nothing where the block has one expert, which all tokens use
struct Block : TransformerBlock {
  std::vector<FeedForwardWeights> all;

  Block(const Weight &attention_norm, float attention_eps, const std::vector<Weight> &w, int64_t window,
              const Weight &ffn_norm, float ffn_eps, const std::optional<Weight> &gate,
              const std::vector<std::vector<Weight>> &experts, int64_t chosen)
      : TransformerBlock{} {
    check(w.size() == 4 && w[3].in == w[0].out && w[1].out == w[2].out && w[3].out == w[0].in, "unfit weights");
    for (const auto &each : experts) all.push_back(feed_forward_weights(each));
    const int64_t count = gate ? gate->out : 1;
    check(int64_t(all.size()) == count && chosen > 0 && chosen <= count, "experts that do not fit");
    check(all[0].w1.in == w[0].in && ffn_norm.in == w[0].in && attention_norm.in == w[0].in, "halves that do not fit");
    static_cast<TransformerBlock &>(*this) = {{{attention_norm, attention_eps}, w[0], w[1], w[2], w[3]},
                                   window,
                                   {ffn_norm, ffn_eps},
                                   gate ? Matrix(*gate) : Matrix{},
                                   all.data(),
                                   chosen};
  }
  Block(const Block &) = delete;
  int64_t dim() const { return attention.wq.in; }
  int64_t q_dim() const { return attention.wq.out; }
  int64_t kv_dim() const { return attention.wk.out; }
};

// How many of the sequences have a cache
int64_t stored_sequences(const Sizes &sizes) {
  int64_t count = 0;
  for (size_t s = 2; s < sizes.size(); s += 3) count += sizes[s] > 0;
  return count;
}

// caches: keys and values of each sequence, or nothing at all; sizes: new tokens, tokens before and slots of each;
// tokens: of all sequences together
std::vector<Sequence> sequences_of(const Tensors &caches, const Sizes &sizes, Heads heads, int64_t tokens,
                                   bool precise) {
  std::vector<Sequence> sequences;
  for (size_t s = 0; 3 * s + 2 < sizes.size(); s++) {
    Sequence sequence = {sizes[3 * s], sizes[3 * s + 1], sizes[3 * s + 2], nullptr, nullptr};
    if (sequence.slots) {
      const size_t size = heads.kv_heads * sequence.slots * heads.head_dim;
      sequence.keys = slots(caches.at(2 * s), size, precise);
      sequence.values = slots(caches.at(2 * s + 1), size, precise);
    }
    tokens -= sequence.tokens;
    sequences.push_back(sequence);
  }
  check(tokens == 0 && heads.head_dim % 2 == 0 && heads.heads % heads.kv_heads == 0, "rows that do not fit the tokens");
  return sequences;
}

// A loaded library of kernels; `precise` as in kernels.h
struct Library {
  const Kernels *kernels;
  bool precise;

  Library(const std::string &path, bool precise) : precise(precise) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    auto entry = library ? reinterpret_cast<decltype(&mistral_kernels)>(dlsym(library, "mistral_kernels")) : nullptr;
    if (!entry) throw std::runtime_error(dlerror());
    kernels = entry();
  }

  py::object embed(const Weight &table, const Tensor &ids) {
    return run("MistralEmbed", {ids}, table.in, [k = kernels, table](const Tensors &in, float *y) {
      check(in[0].data_type() == ms::TypeId::kNumberTypeInt64 && in[0].is_contiguous(), "ids must be int64");
      k->embed(table, static_cast<const int64_t *>(in[0].GetDataPtr()), y, in[0].numel());
    });
  }

  py::object rms_norm(const Tensor &x, const Weight &w, float eps) {
    return run("MistralRmsNorm", {x}, w.in, [k = kernels, w, eps](const Tensors &in, float *y) {
      const int64_t tokens = in[0].shape()[0];
      k->rms_norm(floats(in[0], tokens * w.in), {w, eps}, y, tokens);
    });
  }

  py::object linear(const Tensor &x, const Weight &w, bool exact) {
    return run("MistralLinear", {x}, w.out, [k = kernels, w, exact = exact || precise](const Tensors &in, float *y) {
      const int64_t tokens = in[0].shape()[0];
      k->linear(floats(in[0], tokens * w.in), w, y, tokens, exact);
    });
  }

  py::object feed_forward(const Tensor &x, const std::vector<Weight> &weights) {
    const FeedForwardWeights e = feed_forward_weights(weights);
    return run("MistralFeedForward", {x}, e.w1.in, [k = kernels, e, precise = precise](const Tensors &in, float *y) {
      const int64_t tokens = in[0].shape()[0];
      k->feed_forward(floats(in[0], tokens * e.w1.in), e, y, tokens, precise);
    });
  }

  // angles: see rotation_of; caches, sizes: see sequences_of; q_dim, kv_dim: widths of q, and of k and v, whose shapes
  // MindSpore may not know before it has computed them
  py::object attention(const Tensor &q, const Tensor &k, const Tensor &v, const Tensors &angles, const Tensors &caches,
                       const Sizes &sizes, int64_t window, int64_t q_dim, int64_t kv_dim) {
    const int64_t dim = angles.at(0).shape()[1];
    const Heads heads = {q_dim / dim, kv_dim / dim, dim, window};
    Tensors inputs = {q, k, v};
    inputs.insert(inputs.end(), angles.begin(), angles.end());
    inputs.insert(inputs.end(), caches.begin(), caches.end());
    const auto launch = [lib = kernels, n = angles.size(), sizes, heads, precise = precise](const Tensors &in,
                                                                                            float *y) {
      const int64_t tokens = in[3].shape()[0];
      const size_t size = tokens * heads.head_dim, keys = size * heads.kv_heads;
      const auto sequences = sequences_of({in.begin() + 3 + n, in.end()}, sizes, heads, tokens, precise);
      lib->attention(floats(in[0], size * heads.heads), floats(in[1], keys), floats(in[2], keys),
                     rotation_of(in, 3, n, tokens, heads.head_dim), y, heads, sequences.data(), sequences.size(),
                     precise);
    };
    return run("MistralAttention", inputs, q_dim, launch);
  }

  // sizes: see sequences_of, of the first block and then of each that follows; caches alike
  py::object transformer_blocks(const Tensor &x, const std::vector<const Block *> &handles, const Tensors &angles,
                                const Tensors &caches, const std::vector<Sizes> &sizes) {
    const int64_t dim = angles.at(0).shape()[1], width = handles.at(0)->dim();
    std::vector<const TransformerBlock *> blocks;
    for (const Block *handle : handles) {
      check(handle->dim() == width && handle->q_dim() == handles[0]->q_dim(), "blocks that do not fit");
      check(handle->kv_dim() == handles[0]->kv_dim(), "blocks that do not fit");
      blocks.push_back(handle);
    }
    check(sizes.size() == blocks.size(), "sizes that do not fit the blocks");
    const Heads heads = {handles[0]->q_dim() / dim, handles[0]->kv_dim() / dim, dim, 0};
    Tensors inputs = {x};
    inputs.insert(inputs.end(), angles.begin(), angles.end());
    inputs.insert(inputs.end(), caches.begin(), caches.end());
    const auto launch = [k = kernels, n = angles.size(), sizes, heads, blocks, width, precise = precise](
                            const Tensors &in, float *y) {
      const int64_t tokens = in[0].shape()[0];
      std::vector<Sequence> sequences;
      auto cache = in.begin() + 1 + n;
      for (const Sizes &own : sizes) {
        const auto end = cache + std::min<int64_t>(in.end() - cache, 2 * stored_sequences(own));
        for (const Sequence &each : sequences_of({cache, end}, own, heads, tokens, precise)) sequences.push_back(each);
        cache = end;
      }
      k->transformer_blocks(floats(in[0], tokens * width), blocks.data(), blocks.size(),
                            rotation_of(in, 1, n, tokens, heads.head_dim), y, heads, sequences.data(),
                            sequences.size() / blocks.size(), precise);
    };
    return run("MistralTransformerBlocks", inputs, width, launch);
  }

  py::object feed_forward_half(const Tensor &x, const Block &block) {
    const auto launch = [k = kernels, b = &block, p = precise](const Tensors &in, float *y) {
      const int64_t tokens = in[0].shape()[0];
      k->feed_forward_half(floats(in[0], tokens * b->dim()), *b, y, tokens, p);
    };
    return run("MistralFeedForwardHalf", {x}, block.dim(), launch);
  }
};

}  // namespace

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
  py::class_<Weight>(m, "Weight").def(py::init<uintptr_t, uintptr_t, int32_t, int64_t, int64_t>());
  py::class_<Block>(m, "Block")
      .def(py::init<const Weight &, float, const std::vector<Weight> &, int64_t, const Weight &, float,
                    const std::optional<Weight> &, const std::vector<std::vector<Weight>> &, int64_t>());
  py::class_<Library>(m, "Library")
      .def(py::init<const std::string &, bool>())
      .def_property_readonly("instructions", [](const Library &library) { return library.kernels->instructions; })
      .def("embed", &Library::embed)
      .def("rms_norm", &Library::rms_norm)
      .def("linear", &Library::linear)
      .def("feed_forward", &Library::feed_forward)
      .def("attention", &Library::attention)
      .def("transformer_blocks", &Library::transformer_blocks)
      .def("feed_forward_half", &Library::feed_forward_half);
}
