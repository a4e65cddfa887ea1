// All sources as one translation unit: the headers of libtorch, which are most of the work of a compilation, are read once.

#include "shim.cpp"

#include "packed.cpp"

#include "fused.cpp"

#include "linear.cpp"

#include "memory.cpp"

#include "dlpack.cpp"

#include "parallel.cpp"
