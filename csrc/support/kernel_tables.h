// Tables of kernels by instruction set. A domain has a template `Table<T>` of function pointers; each set's sources define
// `extern const Table<float> name_float` and `Table<double> name_double` in the set's namespace. DEEPLAB_CRF_KERNEL_TABLE(Table,
// name), at namespace scope of deeplab_crf, then defines `const Table<T>& name<T>()`: the table of the active set.
//
// A domain that computes in float alone has a plain struct Table, `extern const Table name` in each set's namespace, and, at
// namespace scope of its own, DEEPLAB_CRF_FLOAT_KERNEL_TABLE(Table, name), which defines `const Table& name()`;
// DEEPLAB_CRF_DECLARE_FLOAT_TABLES before it, at namespace scope of deeplab_crf.
#pragma once

#include "support/cpu_dispatch.h"

#define DEEPLAB_CRF_DECLARE_TABLE(isa, Table, name) \
  namespace isa {                                   \
  extern const Table<float> name##_float;           \
  extern const Table<double> name##_double;         \
  }

#ifdef DEEPLAB_CRF_X86
#define DEEPLAB_CRF_DECLARE_TABLES(Table, name)    \
  DEEPLAB_CRF_DECLARE_TABLE(baseline, Table, name) \
  DEEPLAB_CRF_DECLARE_TABLE(avx2, Table, name)     \
  DEEPLAB_CRF_DECLARE_TABLE(avx512, Table, name)
#define DEEPLAB_CRF_CHOOSE_TABLE(Table, name, T)                 \
  template <>                                                    \
  const Table<T>& name<T>() {                                    \
    if (active_isa() == Isa::kAvx512) return avx512::name##_##T; \
    if (active_isa() == Isa::kAvx2) return avx2::name##_##T;     \
    return baseline::name##_##T;                                 \
  }
#else
#define DEEPLAB_CRF_DECLARE_TABLES(Table, name) DEEPLAB_CRF_DECLARE_TABLE(baseline, Table, name)
#define DEEPLAB_CRF_CHOOSE_TABLE(Table, name, T) \
  template <>                                    \
  const Table<T>& name<T>() {                    \
    return baseline::name##_##T;                 \
  }
#endif

#define DEEPLAB_CRF_KERNEL_TABLE(Table, name)  \
  DEEPLAB_CRF_DECLARE_TABLES(Table, name)      \
  DEEPLAB_CRF_CHOOSE_TABLE(Table, name, float) \
  DEEPLAB_CRF_CHOOSE_TABLE(Table, name, double)

#ifdef DEEPLAB_CRF_X86
#define DEEPLAB_CRF_DECLARE_FLOAT_TABLES(Table, name) \
  namespace baseline {                                \
  extern const Table name;                            \
  }                                                   \
  namespace avx2 {                                    \
  extern const Table name;                            \
  }                                                   \
  namespace avx512 {                                  \
  extern const Table name;                            \
  }
#define DEEPLAB_CRF_FLOAT_KERNEL_TABLE(Table, name)        \
  const Table& name() {                                    \
    if (active_isa() == Isa::kAvx512) return avx512::name; \
    if (active_isa() == Isa::kAvx2) return avx2::name;     \
    return baseline::name;                                 \
  }
#else
#define DEEPLAB_CRF_DECLARE_FLOAT_TABLES(Table, name) \
  namespace baseline {                                \
  extern const Table name;                            \
  }
#define DEEPLAB_CRF_FLOAT_KERNEL_TABLE(Table, name) \
  const Table& name() { return baseline::name; }
#endif
